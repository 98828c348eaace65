"""Changes: all or nothing, tried or for good, and killed after every step of making, ending and recovering one."""

from __future__ import annotations

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from common.errors import ConfigError, MixosError, RefusedError
from common.files import write_atomically
from daemon.core.change import files, memory, record
from daemon.core.change.applier import Plan, View, Wish
from daemon.core.change.connection import connection
from daemon.core.change.engine import Changes
from daemon.core.change.files import Rename, Renames, Trees
from daemon.core.change.record import Contents
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.parts.backup.part import Backup, Restore
from daemon.parts.config.part import Config, Put, Target
from tests import backups
from tests.kills import killed
from tests.waiting import eventually

CALLER = Caller(Role.ADMIN, 0, 0, 1, "ada", "local")
GOOD, TRY, DRY = Wish(force=True), Wish(confirm=600), Wish.model_validate({"dry-run": True})
CUT = "cut"


class Gadget:
    """A part whose kernel is a file, which it writes in two steps; a reboot empties it."""

    def __init__(self, context: Context, name: str = "gadget") -> None:
        self.context = context
        self.name = name
        self.file = f"etc/mixos/{name}.toml"
        self.kernel = context.run / f"{name}.kernel"
        self.text: str | None = None
        self.stuck: bool | Exception = False

    def owns(self, name: str) -> bool:
        return name == self.file

    def in_force(self) -> Contents:
        return {self.file: self.text.encode() if self.text is not None else None}

    async def prepare(self, view: View, caller: Caller | None, dry_run: bool) -> Plan:
        text = view.text(self.file)
        if text == "broken":
            raise ConfigError("broken", reason="gadget-broken")
        before = {"kernel": self.kernel.read_text() if self.kernel.exists() else ""}
        return Plan(
            {self.file: view.read(self.file)},
            [f"become {text}"],
            cuts=(text or "").startswith(CUT),
            before=before,
            data=text,
        )

    async def apply(self, plan: Plan, step: files.Step) -> None:
        self._write("half")
        step("half")
        if plan.data == "fails":
            raise MixosError("fails", reason="gadget-fails")
        self._write(plan.data or "")
        self.text = plan.data

    async def undo(self, before: Mapping[str, Any], view: View) -> None:
        if self.stuck:
            raise self.stuck if isinstance(self.stuck, Exception) else OSError("stuck")
        self.text = view.text(self.file)
        self._write(before.get("kernel", self.text or ""))

    async def kept(self) -> None:
        (self.context.state / f"{self.name}.boot").write_text(self.text or "")

    def _write(self, text: str) -> None:
        self.kernel.write_text(text)


def device(base: Path) -> Context:
    context = Context(*(base / name for name in ("run", "var/lib/mixos", "etc/mixos", "lib", "log")))
    for folder in (context.run, context.state, context.etc):
        folder.mkdir(parents=True, exist_ok=True)
    return context


class Box:
    """A daemon that can be started again."""

    def __init__(self, base: Path, step: files.Step = files.nothing, parts: tuple[str, ...] = ("gadget",)) -> None:
        self.context = device(base)
        self.changes = self.context.changes
        self.changes.step = step
        self.parts = [Gadget(self.context, name) for name in parts]

    async def start(self) -> list[MixosError | None]:
        return [await self.changes.start(one, {one.file: None}) for one in self.parts]

    def run(self, work: Callable[[Changes], Awaitable[Any]]) -> Any:
        async def whole() -> Any:
            await self.start()
            try:
                return await work(self.changes)
            finally:
                await self.changes.stop()

        return asyncio.run(whole())


def put(text: str | None, wish: Wish = GOOD, name: str = "gadget") -> Callable[[Changes], Awaitable[Any]]:
    contents = {f"etc/mixos/{name}.toml": None if text is None else text.encode()}
    return lambda changes: changes.make(CALLER, wish, f"put {text}", contents)


async def nothing(_: Changes) -> None:
    """Starting was all."""


def state(base: Path, name: str = "gadget") -> tuple[str | None, str]:
    """(the file, what is in force)."""
    file = base / f"etc/mixos/{name}.toml"
    return file.read_text() if file.exists() else None, (base / f"run/{name}.kernel").read_text()


def left(base: Path) -> list[str]:
    """What a change left behind that should be gone."""
    staged = [*base.glob("etc/.mixos-change-*"), *base.glob("var/lib/.mixos-change-*")]
    return sorted(
        path.name
        for path in (*staged, *base.glob("var/lib/mixos/changes/*.json"), *base.glob("var/lib/mixos/changes/*.kept"))
    )


# -- what comes of a change ------------------------------------------------------------------------------------------


def test_for_good(tmp_path):
    answer = Box(tmp_path).run(put("one"))
    assert (answer["applied"], answer["confirm"], answer["steps"]) == (True, None, ["become one"])
    assert state(tmp_path) == ("one", "one")
    assert (tmp_path / "var/lib/mixos/gadget.boot").read_text() == "one"
    assert left(tmp_path) == []


def test_a_dry_run_touches_nothing(tmp_path):
    Box(tmp_path).run(put("one"))
    answer = Box(tmp_path).run(put("cut", DRY))
    assert (answer["applied"], answer["cuts-off"], answer["steps"]) == (False, True, ["become cut"])
    assert answer["files"].splitlines()[-2:] == ["-one", "+cut"]
    assert state(tmp_path) == ("one", "one")


def test_a_secret_is_not_in_the_difference(tmp_path):
    async def work(changes: Changes) -> Any:
        return await changes.make(CALLER, DRY, "x", {"var/lib/mixos/vpn/wg0.key": b"secret"})

    assert Box(tmp_path).run(work)["files"] == "~ var/lib/mixos/vpn/wg0.key changes"


@pytest.mark.parametrize(
    ("text", "wish", "seconds"),
    [
        ("one", Wish(), None),
        ("cut", Wish(), 60),
        ("cut", Wish(force=True), None),
        ("cut", Wish(confirm=0), None),
        ("one", Wish(confirm=30), 30),
        ("cut", Wish(confirm=30), 30),
    ],
)
def test_what_could_cut_the_caller_off_is_on_trial_by_itself(tmp_path, text, wish, seconds):
    assert Box(tmp_path).run(put(text, wish))["confirm"] == seconds


@pytest.mark.parametrize("how", ["put", "undo", "restore"])
# case: H7
def test_whatever_brings_the_file_what_could_cut_the_caller_off_is_on_trial(tmp_path, monkeypatch, how):
    monkeypatch.setitem(globals(), "CUT", "# cut")
    cutting, harmless = "# cut\n", "# harmless\n"
    box = Box(tmp_path / "box", parts=("network",))
    file = box.context.etc / "network.toml"
    file.write_text(cutting if how == "undo" else harmless)

    async def work(changes: Changes) -> Any:
        config = Config(box.context)
        config.record("ada", "first")
        if how == "put":
            return await config.put(CALLER, Put.model_validate({"path": "network.toml", "text": cutting}))
        if how == "undo":
            await config.put(CALLER, Put.model_validate({"path": "network.toml", "text": harmless}))
            return await config.undo(CALLER, Target())
        old = backups.device(tmp_path / "old")
        (old.etc / "mixos/network.toml").write_text(cutting)
        content, secret = io.BytesIO(backups.backup(old)), SecretStr(backups.SECRET)
        return await Backup(box.context).restore(CALLER, Restore.model_construct(content=content, passphrase=secret))

    assert box.run(work)["confirm"] == 60
    assert file.read_text() == harmless


@pytest.mark.parametrize("dry", [False, True])
@pytest.mark.parametrize(
    ("name", "force", "reason"), [("units/x", False, "change-no-trial"), ("gadget", True, "change-force-confirm")]
)
def test_what_cannot_be_tried_is_refused(tmp_path, dry, name, force, reason):
    """Also by a dry run, which foretells what would be done."""

    async def work(changes: Changes) -> str:
        wish = Wish(confirm=600, force=force).model_copy(update={"dry_run": dry})
        with pytest.raises(MixosError) as caught:
            await changes.make(CALLER, wish, "it", {f"etc/mixos/{name}.toml": b""})
        return caught.value.reason

    assert Box(tmp_path).run(work) == reason
    assert left(tmp_path) == []


def test_what_changes_nothing_needs_no_trial(tmp_path):
    made = Box(tmp_path).run(lambda changes: changes.make(CALLER, TRY, "nothing", {}))
    assert (made["changed"], made["confirm"]) == (False, None)


def test_what_the_next_boot_needs_and_cannot_be_written_is_told(tmp_path, monkeypatch):
    box = Box(tmp_path)
    monkeypatch.setattr(box.changes.memory, "keep", _full)
    assert box.run(put("one"))["applied"]
    assert state(tmp_path) == ("one", "one")
    assert len(box.changes.problems) == 1


def test_a_trial_writes_no_file_until_it_is_confirmed(tmp_path):
    async def work(changes: Changes) -> Any:
        answer = await put("one", TRY)(changes)
        assert state(tmp_path) == (None, "one")
        return await changes.confirm(CALLER, changes.find(number=answer["change"]))

    assert Box(tmp_path).run(work)["confirmed"]
    assert state(tmp_path) == ("one", "one")
    assert left(tmp_path) == []


def test_a_trial_that_is_reverted(tmp_path):
    async def work(changes: Changes) -> None:
        await put("one")(changes)
        await put("two", TRY)(changes)
        assert state(tmp_path) == ("one", "two")
        await changes.revert(changes.find("gadget"), "by ada")
        with pytest.raises(RefusedError) as caught:
            changes.find("gadget")
        assert caught.value.reason == "change-nothing"
        assert "mixctl audit" in (caught.value.hint or "")

    Box(tmp_path).run(work)
    assert state(tmp_path) == ("one", "one")
    assert left(tmp_path) == []


def test_a_trial_ends_by_itself(tmp_path):
    async def work(changes: Changes) -> None:
        await put("one")(changes)
        ended = asyncio.ensure_future(anext(changes.context.events.listen("change.reverted")))
        await asyncio.sleep(0)
        await put("two", Wish(confirm=1))(changes)
        await asyncio.wait_for(ended, 30)

    Box(tmp_path).run(work)
    assert state(tmp_path) == ("one", "one")


def test_clocks_that_are_set_do_not_end_a_trial(tmp_path, monkeypatch):
    async def work(changes: Changes) -> Any:
        await put("one", TRY)(changes)
        monkeypatch.setattr(time, "time", lambda: 4e9)
        return changes.find("gadget").left

    assert 590 < Box(tmp_path).run(work) <= 600


def test_a_suspend_counts(tmp_path, monkeypatch):
    """The loop's clock stands still while the device sleeps; CLOCK_BOOTTIME does not."""

    async def work(changes: Changes) -> None:
        monkeypatch.setattr("daemon.core.change.engine._LOOK", 0.01)
        ended = asyncio.ensure_future(anext(changes.context.events.listen("change.reverted")))
        await asyncio.sleep(0)
        await put("one", TRY)(changes)
        real = record.boottime()
        monkeypatch.setattr(record, "boottime", lambda: real + 700)
        await asyncio.wait_for(ended, 30)

    Box(tmp_path).run(work)
    assert state(tmp_path) == (None, "")


def test_one_trial_of_a_part_at_a_time(tmp_path):
    async def work(changes: Changes) -> str:
        await put("one", TRY)(changes)
        await put("one", TRY, "widget")(changes)
        with pytest.raises(RefusedError) as several:
            changes.find()
        with pytest.raises(RefusedError) as none:
            changes.find(number="7")
        with pytest.raises(RefusedError) as caught:
            await put("two")(changes)
        assert [changes.find(number=number).number for number in ("1", "00000002")] == ["00000001", "00000002"]
        assert all(text in (none.value.hint or "") for text in ("00000001", "00000002"))
        return f"{several.value.reason} {none.value.reason} {caught.value.reason}"

    assert Box(tmp_path, parts=("gadget", "widget")).run(work) == "change-which change-nothing change-pending"


@pytest.mark.parametrize("text", ["broken", "fails"])
def test_what_fails_changes_nothing(tmp_path, text):
    Box(tmp_path, parts=("first", "gadget")).run(put("one"))

    async def work(changes: Changes) -> str:
        contents = {"etc/mixos/first.toml": b"new", "etc/mixos/gadget.toml": text.encode()}
        with pytest.raises(MixosError) as caught:
            await changes.make(CALLER, GOOD, "both", contents)
        return caught.value.reason

    assert Box(tmp_path, parts=("first", "gadget")).run(work) == f"gadget-{text}"
    assert state(tmp_path) == ("one", "one")
    assert state(tmp_path, "first") == (None, "")
    assert left(tmp_path) == []


def test_an_undo_that_fails_is_said_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr("daemon.core.change.engine._LONGEST", 0.01)
    box = Box(tmp_path)

    async def work(changes: Changes) -> None:
        await put("one")(changes)
        await put("two", TRY)(changes)
        box.parts[0].stuck = True
        problem = asyncio.ensure_future(anext(changes.context.events.listen("change.problem")))
        with pytest.raises(MixosError) as caught:
            await changes.revert(changes.find("gadget"), "by ada")
        assert caught.value.reason == "change-stuck"
        await asyncio.wait_for(problem, 30)
        assert [row["state"] for row in changes.rows()] == ["undoing"]
        with pytest.raises(RefusedError):
            await put("three")(changes)
        ended = asyncio.ensure_future(anext(changes.context.events.listen("change.reverted")))
        await asyncio.sleep(0)
        box.parts[0].stuck = False
        await asyncio.wait_for(ended, 30)

    box.run(work)
    assert state(tmp_path) == ("one", "one")


def test_a_defect_of_one_part_keeps_neither_the_others_nor_the_deadline(tmp_path, monkeypatch):
    """Nobody foresaw it. What was tried must end all the same: it may be what keeps everybody out."""
    monkeypatch.setattr("daemon.core.change.engine._LONGEST", 0.01)
    box = Box(tmp_path, parts=("gadget", "widget"))

    async def work(changes: Changes) -> None:
        contents = {one.file: b"two" for one in box.parts}
        box.parts[1].stuck = KeyError("before")  # undone first
        await changes.make(CALLER, Wish(confirm=1), "both", contents)
        ended = asyncio.ensure_future(anext(changes.context.events.listen("change.reverted")))
        await eventually(lambda: any("KeyError" in text for text in changes.problems))
        assert state(tmp_path)[1] == ""
        box.parts[1].stuck = False
        await asyncio.wait_for(ended, 30)

    box.run(work)
    assert [state(tmp_path, name) for name in ("gadget", "widget")] == [(None, "")] * 2
    assert left(tmp_path) == []


def test_a_defect_while_an_earlier_trial_goes_back_is_tried_again(tmp_path, monkeypatch):
    box = over(tmp_path, monkeypatch)
    box.parts[0].stuck = KeyError("before")

    async def work(changes: Changes) -> None:
        assert [row["state"] for row in changes.rows()] == ["undoing"]
        assert "KeyError" in changes.problems[-1]
        box.parts[0].stuck = False
        await eventually(lambda: not changes.rows())

    box.run(work)
    assert state(tmp_path) == ("one", "one")


async def get_stuck(box: Box, parts: int = 2) -> None:
    """A trial of the first `parts` parts is being undone, and its first one cannot go back."""
    contents = {one.file: b"two" for one in box.parts[:parts]}
    await box.changes.make(CALLER, TRY, "both", contents)
    box.parts[0].stuck = True
    with pytest.raises(MixosError) as caught:
        await box.changes.revert(box.changes.find(), "by ada")
    assert caught.value.reason == "change-stuck"


def test_a_stuck_undo_is_tried_again_when_somebody_wants_it(tmp_path):
    box = Box(tmp_path)

    async def work(changes: Changes) -> None:
        await get_stuck(box)
        for _ in range(2):  # whoever tries in vain does not end the tries
            with pytest.raises(MixosError) as caught:
                await changes.revert(changes.find(undoing=True), "by ada")
            assert caught.value.reason == "change-stuck"
            assert changes._timers
        box.parts[0].stuck = False
        answer = await changes.revert(changes.find(undoing=True), "by ada")
        assert (answer["reverted"], answer["stays"]) == (True, [])
        assert not changes._timers

    box.run(work)
    assert state(tmp_path) == (None, "")
    assert left(tmp_path) == []


def test_a_stuck_undo_that_is_given_up_frees_its_parts(tmp_path):
    box = Box(tmp_path, parts=("gadget", "widget"))

    async def work(changes: Changes) -> None:
        await get_stuck(box)
        assert state(tmp_path, "widget") == (None, "")  # what can go back does, whatever else fails
        told = asyncio.ensure_future(anext(changes.context.events.listen("change.reverted")))
        await asyncio.sleep(0)
        answer = await changes.revert(changes.find(undoing=True), "by ada", give_up=True)
        assert "gadget: stuck" in (await told).data["reason"]  # the audit keeps it
        assert answer["reverted"] is False
        assert answer["stays"] == ["gadget: stuck"]
        assert "gadget: stuck" in changes.problems[-1]
        assert (changes.rows(), changes._timers) == ([], {})
        await put("three")(changes)

    box.run(work)
    assert state(tmp_path) == ("three", "three")
    assert left(tmp_path) == []


def test_what_is_given_up_is_not_waited_for_when_its_part_is_not_up(tmp_path):
    both = ("gadget", "widget")
    contents = {f"etc/mixos/{name}.toml": b"two" for name in both}
    Box(tmp_path, parts=both).run(lambda changes: changes.make(CALLER, TRY, "both", contents))
    answer = Box(tmp_path).run(lambda changes: changes.revert(changes.find(), "by ada", give_up=True))
    assert [text.partition(":")[0] for text in answer["stays"]] == ["widget"]
    assert left(tmp_path) == []


def test_what_is_on_trial_is_meant_before_what_is_stuck(tmp_path):
    box = Box(tmp_path, parts=("gadget", "widget"))

    async def work(changes: Changes) -> None:
        await get_stuck(box, parts=1)
        await put("two", TRY, "widget")(changes)
        assert changes.find(undoing=True).parts == ("widget",)
        assert changes.find("gadget", undoing=True).parts == ("gadget",)
        assert changes.find(number="1", undoing=True).parts == ("gadget",)
        with pytest.raises(RefusedError) as caught:
            changes.find(number="1")
        assert caught.value.reason == "change-nothing"

    box.run(work)


def test_a_full_disk_keeps_what_was(tmp_path, monkeypatch):
    Box(tmp_path).run(put("one"))

    async def work(changes: Changes) -> list[str]:
        reasons = []
        for name in ("stage", "do"):
            with monkeypatch.context() as patch:
                patch.setattr(files, name, _full)
                with pytest.raises(MixosError) as caught:
                    await put("two")(changes)
            reasons.append(caught.value.reason)
        await put("two", TRY)(changes)
        with monkeypatch.context() as patch:
            patch.setattr(files, "do", _full)
            with pytest.raises(MixosError):
                await changes.confirm(CALLER, changes.find("gadget"))
        reasons.append(changes.find("gadget").state)  # the trial goes on
        return reasons

    assert Box(tmp_path).run(work) == ["change-files", "change-files", "trial"]
    assert state(tmp_path) == ("one", "two")


def test_a_confirmation_that_failed_is_not_finished_by_the_next_start(tmp_path, monkeypatch):
    Box(tmp_path).run(put("one"))

    async def work(changes: Changes) -> str:
        await put("two", TRY)(changes)
        real, writes = record.write_atomically, list[Any]()

        def first_only(*words: Any) -> None:
            writes.append(words)
            if len(writes) > 1:
                _full()
            real(*words)

        with monkeypatch.context() as patch:
            patch.setattr(files, "do", _full)
            patch.setattr(record, "write_atomically", first_only)
            with pytest.raises(MixosError) as caught:
                await changes.confirm(CALLER, changes.find("gadget"))
        return caught.value.reason

    assert Box(tmp_path).run(work) == "change-files"
    Box(tmp_path).run(nothing)  # a power cut, or mixosd was killed, before the deadline
    assert state(tmp_path)[0] == "one"


def _full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_whoever_goes_away_stops_nothing(tmp_path):
    async def work(changes: Changes) -> None:
        task = asyncio.ensure_future(put("one")(changes))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    Box(tmp_path).run(work)
    assert state(tmp_path) == ("one", "one")


def test_others_are_asked_to_read_their_files_again(tmp_path):
    box = Box(tmp_path)
    asked = []

    async def call(caller: Caller, method: str) -> object:
        asked.append((caller.name, method))
        if method == "mdns.apply":
            raise RefusedError("no", reason="mdns-no")
        return {"refused": {"web": "there is no unit 'db'"}}

    box.changes.call = call
    contents = {"etc/mixos/mdns.toml": b"", "etc/mixos/units/x.toml": b""}
    for _ in range(2):  # the second time they hold it already, and what was refused is not in force
        asked.clear()
        answer = box.run(lambda changes: changes.make(CALLER, GOOD, "two files", contents))
        assert sorted(asked) == [("ada", "mdns.apply"), ("ada", "service.reload")]
        assert sorted(answer["problems"], key=lambda one: one["method"]) == [
            {"method": "mdns.apply", "reason": "mdns-no", "message": "no"},
            {"method": "service.reload", "reason": "config-refused", "message": "web: there is no unit 'db'"},
        ]


# -- starts ----------------------------------------------------------------------------------------------------------


def test_a_trial_goes_on_over_a_restart_of_the_daemon(tmp_path):
    Box(tmp_path).run(put("one", TRY))
    box = Box(tmp_path)
    answer = box.run(lambda changes: changes.confirm(CALLER, changes.find("gadget")))
    assert answer["confirmed"]
    assert state(tmp_path) == ("one", "one")


def reboot(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another boot: what was in the kernel is gone."""
    (base / "boot_id").write_text("another\n")
    monkeypatch.setattr(record, "BOOT_ID", base / "boot_id")
    for path in base.glob("run/*"):
        path.unlink()


def test_a_reboot_ends_a_trial(tmp_path, monkeypatch):
    Box(tmp_path).run(put("one"))
    Box(tmp_path).run(put("two", TRY))
    reboot(tmp_path, monkeypatch)
    Box(tmp_path).run(nothing)
    assert state(tmp_path) == ("one", "one")
    assert left(tmp_path) == []


def test_a_deadline_that_passed_while_nobody_was_there(tmp_path, monkeypatch):
    """It is told as if somebody had been there, once for all its parts."""
    Box(tmp_path, parts=PARTS).run(lambda changes: changes.make(CALLER, GOOD, "before", OLD))
    Box(tmp_path, parts=PARTS).run(lambda changes: changes.make(CALLER, TRY, "change", NEW))
    real = record.boottime()
    monkeypatch.setattr(record, "boottime", lambda: real + 700)
    box, told = Box(tmp_path, parts=PARTS), list[tuple[str, str]]()
    monkeypatch.setattr(box.context.events, "publish", lambda topic, subject, /, **_: told.append((topic, subject)))
    box.run(nothing)
    assert both(tmp_path) == {("old", "old")}
    assert left(tmp_path) == []
    assert told == [("change.reverted", "00000001"), ("gadget.reverted", "gadget"), ("widget.reverted", "widget")]


def over(base: Path, monkeypatch: pytest.MonkeyPatch) -> Box:
    """A daemon that is to start when the time of a trial of an earlier one is over."""
    Box(base).run(put("one"))
    Box(base).run(put("two", TRY))
    now = record.boottime()
    monkeypatch.setattr(record, "boottime", lambda: now + 1000)
    return Box(base)


def test_what_an_earlier_daemon_tried_and_cannot_be_undone_is_tried_again(tmp_path, monkeypatch):
    box = over(tmp_path, monkeypatch)
    box.parts[0].stuck = True

    async def work(changes: Changes) -> None:
        assert [row["state"] for row in changes.rows()] == ["undoing"]
        box.parts[0].stuck = False
        await eventually(lambda: not changes.rows())

    box.run(work)
    assert state(tmp_path) == ("one", "one")
    assert left(tmp_path) == []


def test_a_trial_that_is_over_is_not_confirmed(tmp_path, monkeypatch):
    """Its part has not started yet."""
    box = over(tmp_path, monkeypatch)

    async def work() -> str:
        box.changes.open()
        with pytest.raises(RefusedError) as caught:
            await box.changes.confirm(CALLER, box.changes.find())
        assert caught.value.hint
        return caught.value.reason

    assert asyncio.run(work()) == "change-nothing"
    assert (tmp_path / "etc/mixos/gadget.toml").read_text() == "one"


def test_a_file_of_ones_own_that_was_undone_is_not_taken_up_again(tmp_path):
    Box(tmp_path).run(put("one"))

    async def work(changes: Changes) -> None:
        (tmp_path / "etc/mixos/gadget.toml").write_text("mine")
        await changes.make(CALLER, TRY, "apply", parts=("gadget",))
        assert state(tmp_path) == ("mine", "mine")
        await changes.revert(changes.find("gadget"), "by ada")

    Box(tmp_path).run(work)
    assert state(tmp_path) == ("mine", "one")
    problems: list[Any] = []

    async def look(changes: Changes) -> None:
        problems.append(changes.unconfirmed(box.parts[0]) is not None)

    box = Box(tmp_path)
    box.run(look)
    assert state(tmp_path) == ("mine", "one")
    assert problems == [True]
    box = Box(tmp_path)
    box.run(lambda changes: changes.make(CALLER, GOOD, "apply", parts=("gadget",)))
    Box(tmp_path).run(nothing)
    assert state(tmp_path) == ("mine", "mine")


@pytest.mark.parametrize("text", ["one", None])
def test_a_trial_that_changes_nothing_leaves_the_file_in_force(tmp_path, text):
    async def work(changes: Changes) -> bool:
        await put(text)(changes)
        await changes.make(CALLER, TRY, "apply", {}, parts=("gadget",))
        await changes.revert(changes.find("gadget"), "time")
        return changes.unconfirmed(box.parts[0]) is None

    box = Box(tmp_path)
    assert box.run(work)
    assert Box(tmp_path).run(nothing) is None
    assert state(tmp_path) == (text, text or "")


def test_a_broken_file_leaves_what_was_good(tmp_path):
    Box(tmp_path).run(put("one"))
    (tmp_path / "etc/mixos/gadget.toml").write_text("broken")
    box = Box(tmp_path)
    problem = asyncio.run(box.start())[0]
    assert problem is not None
    assert problem.reason == "gadget-broken"
    assert state(tmp_path) == ("broken", "one")


def test_a_part_that_is_not_up_goes_back_when_it_is(tmp_path, monkeypatch):
    both = ("gadget", "widget")
    contents = {f"etc/mixos/{name}.toml": b"two" for name in both}
    Box(tmp_path, parts=both).run(lambda changes: changes.make(CALLER, TRY, "both", contents))

    async def work(changes: Changes) -> list[dict[str, Any]]:
        await changes.revert(changes.find(), "by ada")
        return changes.rows()

    (row,) = Box(tmp_path).run(work)  # widget failed to start
    assert row["state"] == "undoing"
    assert (state(tmp_path), state(tmp_path, "widget")) == ((None, ""), (None, "two"))
    Box(tmp_path, parts=both).run(nothing)
    assert (state(tmp_path), state(tmp_path, "widget")) == ((None, ""), (None, ""))
    assert left(tmp_path) == []


def test_the_loop_does_not_wait_for_the_journal(tmp_path, monkeypatch):
    """A record may hold several lists of 8 MiB."""
    threads: set[int] = set()

    def noted(*given: Any) -> None:
        threads.add(threading.get_ident())
        write_atomically(*given)

    for module in (record, memory):
        monkeypatch.setattr(module, "write_atomically", noted)

    async def work(changes: Changes) -> None:
        await put("one")(changes)
        await put("two", TRY)(changes)
        await changes.confirm(CALLER, changes.find())
        await put("three", TRY)(changes)
        await changes.revert(changes.find(), "by ada")

    Box(tmp_path).run(work)
    assert threads
    assert threading.get_ident() not in threads


# -- journals --------------------------------------------------------------------------------------------------------


def journal(base: Path) -> Path:
    (found,) = base.glob("var/lib/mixos/changes/*.json")
    return found


def test_a_journal_that_is_cut_at_any_byte_is_told_and_harms_nothing(tmp_path):
    Box(tmp_path).run(put("one", TRY))
    data = journal(tmp_path).read_bytes()
    for size in range(0, len(data), 7):
        base = tmp_path / f"cut{size}"
        box = Box(base)
        folder = box.context.state / "changes"
        folder.mkdir()
        (folder / "00000001.json").write_bytes(data[:size])
        box.run(nothing)
        assert len(box.changes.problems) == 1
        assert [path.name for path in folder.glob("*.damaged")] == ["00000001.json.damaged"]


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_no_journal_breaks_the_reader(tmp_path_factory, value):
    folder = tmp_path_factory.mktemp("journal")
    (folder / "1.json").write_text(json.dumps(value))
    assert [isinstance(one, Path) for one in record.Journal(folder).records()] == [True]


def test_a_damaged_journal_on_a_disk_that_became_read_only_is_told(tmp_path, monkeypatch):
    Box(tmp_path).run(put("one", TRY))
    journal(tmp_path).write_bytes(b"{")

    def read_only(*_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "rename", read_only)
    box = Box(tmp_path)
    box.run(nothing)
    assert len(box.changes.problems) == 1


def test_a_journal_of_a_later_version_is_not_guessed_at(tmp_path):
    Box(tmp_path).run(put("one", TRY))
    path = journal(tmp_path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    box = Box(tmp_path)
    box.run(nothing)
    assert box.changes.problems


def test_what_was_staged_and_never_written_down_goes(tmp_path):
    for folder in ("etc", "var/lib"):
        (tmp_path / folder / ".mixos-change-00000099/new").mkdir(parents=True)
    Box(tmp_path).run(nothing)
    assert left(tmp_path) == []


# -- kill -9 at every step, and again while recovering -----------------------------------------------------------------


def test_however_deep_a_unit_has_made_its_folder_it_goes(tmp_path):
    """Neither recursion nor a descriptor for each level; nothing of it may end the daemon at its start."""
    top = tmp_path / "var/lib/.mixos-change-00000007/old/0"
    top.mkdir(parents=True)
    folder = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=folder)
        os.symlink("/etc", "link", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    Box(tmp_path).run(nothing)
    assert left(tmp_path) == []


def test_what_a_damaged_record_has_staged_stays(tmp_path):
    """It may be the only copy of what was there before."""
    Box(tmp_path).run(put("one"))
    (tmp_path / "var/lib/mixos/changes/00000005.json").write_text("{}")
    kept = tmp_path / "var/lib/.mixos-change-00000005/old/0"
    kept.mkdir(parents=True)
    for _ in range(2):
        box = Box(tmp_path)
        box.run(nothing)
        assert kept.is_dir()
        assert int(box.changes.number()) > 5


def test_a_number_is_not_used_again(tmp_path):
    """Whoever confirms a change that ended while the daemon was started again must not confirm another one."""

    async def trial(changes: Changes) -> str:
        answer = await put("one", TRY)(changes)
        await changes.revert(changes.find(number=answer["change"]), "x")
        return str(answer["change"])

    assert Box(tmp_path).run(trial) != Box(tmp_path).run(trial)


def test_a_folder_that_is_on_trial_is_not_changed_by_another(tmp_path):
    tree = tmp_path / "var/lib/web"
    tree.mkdir(parents=True)

    def staged(changes: Changes) -> tuple[str, Renames]:
        number = changes.number()
        _, lib = files.make_staging(changes.places, number)
        (lib / "new/0").mkdir()
        return number, Renames((Rename("tree", "var/lib/web", str(tree), f"{lib}/new/0", f"{lib}/old/0", True),))

    async def work(changes: Changes) -> str:
        await changes.make(CALLER, TRY, "restore", parts=("gadget",), staged=staged(changes))
        with pytest.raises(RefusedError) as caught:
            await changes.make(CALLER, GOOD, "another", staged=staged(changes))
        return caught.value.reason

    assert Box(tmp_path).run(work) == "change-pending"


def test_a_file_that_was_made_meanwhile_survives_a_commit_that_fails(tmp_path, monkeypatch):
    do, file = files.do, tmp_path / "etc/mixos/gadget.toml"

    def late(renames: Renames, step: files.Step) -> None:
        do(renames, step)
        raise OSError("full")

    async def work(changes: Changes) -> None:
        record_ = changes.find(number=(await put("one", TRY)(changes))["change"])
        file.write_text("by hand")
        with monkeypatch.context() as patched:
            patched.setattr(files, "do", late)
            with pytest.raises(MixosError):
                await changes.confirm(CALLER, record_)
        files.undo(record_.renames)  # as after a cut
        assert file.read_text() == "by hand"

    Box(tmp_path).run(work)


@pytest.mark.parametrize("name", ["etc/mixos/../shadow", "etc/mixos//etc/shadow", "var/lib/./x", "etc/", "bin/sh", ""])
def test_names_lead_nowhere_else(tmp_path, name):
    async def work(changes: Changes) -> str:
        with pytest.raises(RefusedError) as caught:
            await changes.make(CALLER, GOOD, "x", {name: b""})
        return caught.value.reason

    assert Box(tmp_path).run(work) == "change-name"


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_is_no_file_of_ours_holds_up_nobody(tmp_path, kind):
    """A folder of /etc/mixos may be another account's to write."""
    box = Box(tmp_path)
    file = tmp_path / "etc/mixos/gadget.toml"
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "device":
        file.symlink_to("/dev/zero")
    else:
        file.touch()
        os.truncate(file, 1 << 40)
    (problem,) = asyncio.run(box.start())
    assert problem is not None
    assert problem.reason == ("config-too-large" if kind == "large" else "config-unreadable")


def sweep(tmp_path: Path, prepare: Callable[[Path], None], work: Callable[[Path, files.Step], None]) -> list[Path]:
    """Every place where `work` can be killed, then every place where the next start can be killed; each in a folder of
    its own, in which a last start has been made."""
    found = []
    for first in range(200):
        for second in range(200):
            base = tmp_path / f"{first}-{second}"
            prepare(base)
            came = killed(lambda step: work(base, step), first)  # noqa: B023
            again = killed(lambda step: Box(base, step, PARTS).run(nothing), second)  # noqa: B023
            Box(base, parts=PARTS).run(nothing)
            found.append(base)
            if not again:
                break
        if not came:
            return found
    raise AssertionError("it never ends")


PARTS = ("gadget", "widget")
OLD = {f"etc/mixos/{name}.toml": b"old" for name in PARTS}
NEW = {f"etc/mixos/{name}.toml": b"new" for name in PARTS}


def prepared(base: Path) -> None:
    Box(base, parts=PARTS).run(lambda changes: changes.make(CALLER, GOOD, "before", OLD))


def both(base: Path) -> set[tuple[str | None, str]]:
    return {state(base, name) for name in PARTS}


def test_killed_while_a_change_for_good_is_made(tmp_path):
    def work(base: Path, step: files.Step) -> None:
        Box(base, step, PARTS).run(lambda changes: changes.make(CALLER, GOOD, "change", NEW))

    ends = [both(base) for base in sweep(tmp_path, prepared, work)]
    assert all(end in ({("old", "old")}, {("new", "new")}) for end in ends)
    assert len(ends) > 50
    assert all(left(base) == [] for base in tmp_path.iterdir())


@pytest.mark.parametrize("how", ["trial", "confirm", "revert"])
def test_killed_while_a_change_is_tried_and_ended(tmp_path, how):
    def work(base: Path, step: files.Step) -> None:
        async def go(changes: Changes) -> None:
            await changes.make(CALLER, TRY, "change", NEW)
            if how == "confirm":
                await changes.confirm(CALLER, changes.find())
            if how == "revert":
                await changes.revert(changes.find(), "by ada")

        Box(base, step, PARTS).run(go)

    for base in sweep(tmp_path, prepared, work):
        # While it is on trial, the next daemon goes on with it: in force, files as before.
        assert both(base) in ({("old", "old")}, {("new", "new")}, {("old", "new")}), base
        if both(base) == {("old", "new")}:
            assert json.loads(journal(base).read_bytes())["state"] == "trial"
        else:
            assert left(base) == []


# -- renames ---------------------------------------------------------------------------------------------------------


def test_what_stands_in_the_way(tmp_path):
    trees = Trees(tmp_path / "etc", tmp_path / "lib")
    (tmp_path / "etc/a/deep").mkdir(parents=True)
    (tmp_path / "etc/b").write_text("a file where a folder must be")
    (tmp_path / "etc/c").mkdir()
    (tmp_path / "etc/c/hers").write_text("x")
    renames = files.stage(trees, {"etc/a": (b"1", 0o600), "etc/b": None, "etc/b/new": (b"2", 0o644)}, "1")
    files.do(renames)
    assert (tmp_path / "etc/a").read_text() + (tmp_path / "etc/b/new").read_text() == "12"
    files.undo(renames)
    assert (tmp_path / "etc/a/deep").is_dir()
    assert (tmp_path / "etc/b").read_text().startswith("a file")
    files.clean(renames)
    with pytest.raises(RefusedError) as caught:
        files.stage(trees, {"etc/c": (b"1", 0o600)}, "2")
    assert caught.value.reason == "change-conflict"
    assert (tmp_path / "etc/c/hers").exists()


def test_renames_survive_their_document(tmp_path):
    renames = Renames((Rename("file", "etc/x", "/etc/x", "/n", "/o", True),), ("/etc/y",))
    assert files.from_document(json.loads(json.dumps(renames.document()))) == renames
    with pytest.raises(MixosError) as caught:
        files.from_document({"changes": [{}], "folders": []})
    assert caught.value.reason == "change-journal"


# -- where callers come from -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("203.0.113.9 50000 127.0.0.1 2222", ("203.0.113.9", "127.0.0.1", 2222, "lo")),
        ("203.0.113.9", ("203.0.113.9", "", 22, None)),
        ("::ffff:203.0.113.9", ("203.0.113.9", "", 22, None)),
        ("fe80::1%eth3", ("fe80::1", "", 22, "eth3")),
        ("1.1.1.1 1 1.1.1.2 ٢٢", ("1.1.1.1", "1.1.1.2", 22, None)),
        ("a b c d", None),
        ("", None),
        ("local", None),
    ],
)
def test_a_connection(text, found):
    assert connection(text) == found


@settings(deadline=None)
@given(st.text(max_size=60))
def test_no_connection_text_is_a_crash(text):
    connection(text)


def test_contexts_do_not_share_changes(tmp_path):
    context = device(tmp_path)
    assert replace(context).changes is not context.changes
