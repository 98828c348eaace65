"""What the benchmark of a switch makes of what a guest answers; the guest itself is the far end of a network."""

from __future__ import annotations

import json
from typing import cast

import pytest

from buildsys.run import Completed
from common.errors import HostError
from tests.bench import switch
from tests.boot.guest import Guest


class Told:
    """A guest that goes over to 1.1.0, and is called good when it is asked a second time."""

    serial = "booted"

    def __init__(self) -> None:
        self.heard: list[str] = []

    def run(self, command: str) -> str:
        self.heard.append(command)
        return ""

    def attempt(self, command: str) -> Completed:
        self.heard.append(command)
        good = self.heard.count(command) > 2
        found = {"version": "1.1.0", "state": "good" if good else "trial", "last": None}
        return Completed(0 if self.heard.count(command) > 1 else 255, json.dumps(found).encode(), b"")

    def hang_up(self) -> None:
        self.heard.append("hang up")

    def wait_serial(self, pattern: str, seconds: float, start: int) -> None:
        self.heard.append(pattern)
        assert start == len(self.serial)

    def wait_ssh(self) -> None:
        self.heard.append("banner")


def test_the_steps_of_a_switch_in_their_order() -> None:
    told = Told()
    passed = switch.switch(cast(Guest, told), "1.1.0")
    assert list(passed) == [switch.APPLY, switch.DOWN, switch.BANNER, switch.ANSWERS, switch.GOOD]
    assert list(passed.values()) == sorted(passed.values())
    assert told.heard[:4] == ["mixctl update apply", "hang up", "reboot: Restarting system", "banner"]


def test_a_device_that_fell_back_is_no_switch() -> None:
    with pytest.raises(HostError) as caught:
        switch.switch(cast(Guest, Told()), "1.2.0")
    assert caught.value.reason == "bench-switch"


def test_medians_and_ranges() -> None:
    rows = [
        dict.fromkeys((switch.APPLY, switch.DOWN, switch.BANNER, switch.ANSWERS, switch.GOOD), t) for t in (3, 1, 2)
    ]
    found = switch.figures(rows, "group")
    assert {(one.value, one.note) for one in found} == {(2, "1.00 to 3.00")}
    assert [one.note for one in switch.figures(rows[:1], "group")] == [""] * 5
