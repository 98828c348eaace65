"""Samples become figures: cgroup files, processes, rates, health, the hour's record."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daemon.parts.metrics import cgroups, processes, ring
from daemon.parts.metrics.figures import busiest, figures
from daemon.parts.metrics.health import health
from daemon.parts.metrics.processes import Process
from daemon.parts.metrics.sample import Space, Temperature, Traffic, take
from tests.metricsamples import SAMPLE, UNIT


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return folder


def test_a_cgroup_is_read(tmp_path):
    write(
        tmp_path / "hello",
        cpu_stat="usage_usec 2500000\nuser_usec 1\n",
        memory_current="4096\n",
        memory_events="low 0\noom 1\noom_kill 2\n",
        pids_current="3\n",
        io_stat="8:0 rbytes=100 wbytes=5 rios=1\n8:16 rbytes=1 wbytes=2\n",
    )
    (tmp_path / "hello/memory.swap.current").write_text("0\n")
    assert cgroups.units(tmp_path) == {"hello": cgroups.Unit(2.5, 4096, 0, 3, 101, 7, 2)}


def test_what_a_cgroup_does_not_have_is_not_known(tmp_path):
    write(tmp_path / "bare", pids_current="max\n")
    (tmp_path / "file").write_text("")
    assert cgroups.units(tmp_path) == {"bare": cgroups.Unit(None, None, None, None, None, None, None)}
    assert cgroups.units(tmp_path / "nowhere") == {}


@given(st.binary(max_size=60))
def test_any_content_of_a_cgroup_is_survived(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("group")
    for name in ("cpu.stat", "memory.current", "io.stat", "memory.events", "pids.current"):
        (folder / name).write_bytes(data)
    assert isinstance(cgroups.unit(folder), cgroups.Unit)


def test_this_process_is_found():
    found = asyncio.run(processes.processes())
    own = [one for (pid, _), one in found.items() if pid == os.getpid()]
    assert len(own) == 1
    assert own[0].uid == os.getuid()
    assert own[0].memory > 1 << 20
    assert own[0].state == "R"


@pytest.mark.parametrize("name", ["plain", "a) b (c", "", ") R 1 1 1 1"])
def test_names_of_processes_may_hold_anything(tmp_path, name):
    fields = ["S"] + [str(number) for number in range(4, 53)]
    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text(f"7 ({name}) {' '.join(fields)}\n")
    (tmp_path / "8").mkdir()
    (tmp_path / "9").mkdir()
    (tmp_path / "9/stat").write_bytes(b"9 (cut")
    found = asyncio.run(processes.processes(tmp_path))
    assert [(one.pid, one.name, one.state, one.start, one.threads) for one in found.values()] == [
        (7, name, "S", 22, 20)
    ]


def test_the_unit_of_a_process(tmp_path):
    write(tmp_path / "5", cgroup="1:cpu:/x\n0::/mixos/hello/sub\n")
    write(tmp_path / "6", cgroup="0::/\n")
    assert processes.unit_of(5, tmp_path) == "hello"
    assert processes.unit_of(6, tmp_path) is None
    assert processes.unit_of(7, tmp_path) is None


def test_rates_and_shares():
    after = SAMPLE._replace(
        at=102.0,
        cpu={"user": 11.0, "system": 5.5, "idle": 87.0, "iowait": 0.5, "guest": 5.0},
        disks=(Traffic("vda", 3000, 2000), Traffic("vdb", 50, 50)),
        network=(Traffic("eth0", 50, 700),),
        units={"hello": UNIT._replace(cpu=3.0, read=30), "new": UNIT._replace(cpu=None)},
    )
    found = figures(SAMPLE, after)
    assert found["cpu"] == {
        "count": 2,
        "percent": 37.5,
        "modes": {"user": 25.0, "system": 12.5, "idle": 50.0, "iowait": 12.5},
    }
    assert found["disks"] == [
        {"name": "vda", "read": 1000.0, "write": 0.0},
        {"name": "vdb", "read": 0.0, "write": 0.0},
    ]
    assert found["network"] == [{"name": "eth0", "receive": 0.0, "send": 250.0}]  # counted from zero again
    assert [(one["name"], one["cpu"], one["read"]) for one in found["units"]] == [
        ("hello", 50.0, 10.0),
        ("new", None, 0.0),
    ]
    assert found["seconds"] == 2.0


def test_two_samples_of_the_same_moment():
    assert figures(SAMPLE, SAMPLE)["cpu"]["percent"] == 0.0


def test_a_real_sample():
    sample = take(Path("/nonexistent"))
    assert sample.memory["total"] > sample.memory["used"] > 0
    assert sample.cpus == os.cpu_count()
    assert sample.uptime > 0
    assert sample.units == {}


def process(pid: int, cpu: float, memory: int, name: str = "x", start: int = 1) -> tuple[tuple[int, int], Process]:
    return (pid, start), Process(pid, name, "S", cpu, 1, start, memory, 0)


@pytest.mark.parametrize(
    ("sort", "order"), [("cpu", [2, 4, 3]), ("memory", [3, 4, 1]), ("pid", [1, 2, 3]), ("name", [4, 2, 3])]
)
def test_the_busiest(sort, order):
    before = dict([process(1, 5.0, 10, "d"), process(2, 1.0, 10, "b"), process(3, 9.0, 99, "c"), process(4, 90.0, 5)])
    after = dict(
        [
            process(1, 5.0, 20, "d"),
            process(2, 3.0, 10, "b"),
            process(3, 9.0, 99, "c"),
            process(4, 1.0, 50, "a", start=7),
        ]
    )
    rows = busiest(before, after, 2.0, sort, 3)
    assert [row["pid"] for row in rows] == order
    if sort == "cpu":
        assert [row["cpu"] for row in rows] == [100.0, 50.0, 0.0]  # pid 4 was taken again by a new process


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, []),
        ({"memory": {"total": 1000, "available": 90, "used": 910}}, [("memory", "warning")]),
        ({"memory": {"total": 1000, "available": 30, "used": 970}}, [("memory", "critical")]),
        ({"spaces": (Space("/data", 100, 5), Space("/run", 100, 1))}, [("space", "warning"), ("space", "critical")]),
        ({"load": (0.0, 9.0, 0.0)}, [("load", "warning")]),
        ({"load": (0.0, 40.0, 0.0)}, [("load", "critical")]),
        ({"temperatures": (Temperature("a", 81.0, 80.0, 100.0),)}, [("temperature", "warning")]),
        ({"temperatures": (Temperature("a", 100.0, 80.0, 100.0),)}, [("temperature", "critical")]),
        ({"temperatures": (Temperature("a", 86.0, None, None),)}, [("temperature", "warning")]),
    ],
)
def test_health(change, expected):
    found = health(SAMPLE._replace(**change))
    assert [(one["check"], one["state"]) for one in found["findings"]] == expected
    states = {state for _, state in expected}
    assert found["state"] == ("critical" if "critical" in states else "warning" if states else "ok")


def test_the_record_keeps_the_last_rows():
    record = ring.Ring(rows=5)
    for number in range(8):
        record.add({name: float(number) for name in ring.COLUMNS})
    assert [row[0] for row in record.since(0)] == [3, 4, 5, 6, 7]
    assert [row[0] for row in record.since(6)] == [6, 7]
    assert ring.Ring().since(0) == []


def test_a_row_of_figures():
    row = ring.row_of(figures(SAMPLE, SAMPLE._replace(at=101.0, disks=(Traffic("vda", 1500, 2000),))))
    assert set(row) == set(ring.COLUMNS)
    assert row["read"] == 500.0
    assert row["memory"] == 400
