"""One sample of a machine."""

from __future__ import annotations

from daemon.parts.metrics import cgroups
from daemon.parts.metrics.sample import Sample, Space, Temperature, Traffic

UNIT = cgroups.Unit(cpu=2.0, memory=1 << 20, swap=0, tasks=3, read=10, written=20, oom_kills=1)
SAMPLE = Sample(
    at=100.0,
    uptime=500.0,
    cpus=2,
    cpu={"user": 10.0, "system": 5.0, "idle": 85.0, "iowait": 0.0, "guest": 4.0},
    load=(0.5, 0.2, 0.1),
    memory={"total": 1000, "available": 600, "used": 400},
    swap={"total": 0, "used": 0},
    spaces=(Space("/data", 1000, 500),),
    disks=(Traffic("vda", 1000, 2000),),
    network=(Traffic("eth0", 100, 200, 1, 2),),
    temperatures=(Temperature("cpu", 50.0, 80.0, 100.0),),
    units={"hello": UNIT},
)
