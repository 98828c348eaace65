"""What the benchmark makes of the answers of a booted image; the guest itself is the far end of a network."""

from __future__ import annotations

import json

import pytest

from common.errors import HostError
from daemon.parts.system.boot import _chart
from tests.bench import guest
from tests.bench.figures import document, table

STATUS = """\
Name:	mixosd
Pid:	150
VmRSS:	   20480 kB
RssAnon:	   10240 kB
RssFile:	    9216 kB
RssShmem:	    1024 kB
Name:	kthreadd
Pid:	2
Threads:	1
Name:	shim
Pid:	181
VmRSS:	     300 kB
RssAnon:	      40 kB
RssFile:	     260 kB
RssShmem:	       0 kB
Name:	shim
Pid:	182
RssAnon:	      60 kB
"""
MEMINFO = """\
MemTotal:         998400 kB
MemAvailable:     947200 kB
AnonPages:         20480 kB
Shmem:              1024 kB
Slab:               8192 kB
KernelStack:        1024 kB
PageTables:         1024 kB
"""
ROWS = [
    {"name": "10-mounts", "begin": 0.0, "end": 2.0},
    {"name": "20-net", "begin": 2.0, "end": 3.0},
    {"name": "mixosd: api", "begin": 3.5, "end": 4.0},
]


class Canned:
    """Answers of a guest."""

    def __init__(self, daemon: str = "150\n"):
        self.answers = {
            guest.STATUS: STATUS,
            guest.DAEMON: daemon,
            guest.PYTHON: "2",
            "cat /proc/meminfo": MEMINFO,
            "mixctl boot --json": json.dumps(ROWS),
            "mixctl boot": _chart(ROWS),
        }

    def run(self, command: str) -> str:
        return self.answers[command]

    def lines(self, command: str) -> list[str]:
        return self.run(command).splitlines()


def test_memory_of_the_daemon_lies_between_its_own_pages_and_all_of_them():
    values = {figure.name: (figure.value, figure.unit) for figure in guest.memory(Canned())}
    assert values == {
        "mixosd: all resident pages (its PSS is less)": (20.0, "MiB"),
        "mixosd: anonymous pages alone (its PSS is more)": (10.0, "MiB"),
        "mixosd: pages of files and shared memory": (10.0, "MiB"),
        "shim, mean of 2: anonymous pages": (50.0, "KiB"),
        "RAM used by all (total less available)": (50.0, "MiB"),
        "of it anonymous pages of processes": (20.0, "MiB"),
        "of it files in memory (tmpfs)": (1.0, "MiB"),
        "of it the kernel's slab, stacks and page tables": (10.0, "MiB"),
    }


def test_every_step_has_its_time_and_its_bar():
    figures = list(guest.boot(Canned(), 3.4))
    assert [figure.value for figure in figures] == [3.0, 3.4, 4.0, 2.0, 1.0, 0.5]
    assert [figure.note for figure in figures[3:]] == [
        "|" + "#" * 20,
        "|" + " " * 20 + "#" * 10,
        "|" + " " * 35 + "#" * 5,
    ]


def test_no_daemon_is_no_figure():
    with pytest.raises(HostError) as caught:
        list(guest.memory(Canned(daemon="1\n")))
    assert caught.value.reason == "bench-daemon"


def test_figures_are_a_table_and_a_document():
    figures = list(guest.memory(Canned()))
    assert "≤ 40 MiB: kept" in table(figures)
    assert document(figures, "now")["figures"][0]["value"] == 20.0
