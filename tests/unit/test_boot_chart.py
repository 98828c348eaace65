"""The chart of a boot: steps in their order, parts beside them."""

from __future__ import annotations

from daemon.parts.system.boot import _chart, steps

FACTS = {
    "boot_times": {"20-b.sh": 3.0, "10-a.sh": 1.0},
    "parts": {"one": {"seconds": 0.5, "up_at": 4.0}, "two": {"seconds": 0.0, "up_at": None}},
}


def test_steps_follow_each_other_and_parts_stand_beside_them():
    assert steps(FACTS) == [
        {"name": "10-a", "begin": 0.0, "end": 1.0},
        {"name": "20-b", "begin": 1.0, "end": 3.0},
        {"name": "mixosd: one", "begin": 3.5, "end": 4.0},
    ]


def test_every_bar_lies_between_its_edges():
    lines = _chart(steps(FACTS)).splitlines()[1:]
    bars = [line.partition("|")[2] for line in lines]
    assert bars == ["#" * 10 + " " * 30 + "|", " " * 10 + "#" * 20 + " " * 10 + "|", " " * 35 + "#" * 5 + "|"]


def test_a_boot_that_nobody_timed():
    assert steps({"boot_times": {}}) == []
    assert "#" not in _chart([])
