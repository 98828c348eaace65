"""Power cuts at every write that an update makes to the boot disk: what the loader starts next is a root that verifies.

All states that a cut may leave (`tests.crashstates`) are looked at, and the device goes on from one of them, as it does
when the power is back. `make test` takes some steps of such a walk, `make test-long` thousands of states of each kind.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count as count_up
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from unittest import mock

import psutil
import pytest

from buildsys.run import spawn
from common.bundle.manifest import Manifest
from common.bundle.ranges import Ranges
from common.disk.fatedit import Cleaned
from common.efi.entries import FOLDER
from common.errors import MixosError
from daemon.linux import programs
from daemon.linux.facts import text
from daemon.parts.update.boot import Boot, Disk, look
from daemon.parts.update.part import Update
from daemon.slots import worker
from daemon.slots.disk import count
from daemon.slots.main import main
from daemon.slots.seal import seal
from daemon.slots.stage import Stage
from tests import crashstates, updatepart
from tests.crashstates import Start
from tests.hostpackages import ROOT
from tests.offers import offer, order_for, root_of, served
from tests.slots import Device

if TYPE_CHECKING:
    from daemon.parts.update.answers import Status

WHOLE = "MIXOS_WHOLE" in os.environ
STATES = 2000 if WHOLE else 24


class Walk:
    """A device whose power is cut again and again. seen: states by kind of change; torn: of those, see `State`."""

    def __init__(self, base: Path, seed: int) -> None:
        self.device, self.base, self.chance = Device(base), base, random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.torn: Counter[str] = Counter()
        self.changed: Counter[str] = Counter()  # states in which the loader's entries are others than before
        self.device.boot()
        self.ask("commit")
        self.device.install("1.1", "b")
        self.device.boot()

    def ask(self, *names: str, **params: str) -> object:
        """Bring the part `update` up and call its methods; gives the last answer."""

        async def scenario(update: Update) -> object:
            answer: object = None
            for name in names:
                answer = await updatepart.ask(update, name, **(params if name == "clear" else {}))
            return answer

        tree = self.device.tree
        return updatepart.run(tree, scenario, updatepart.context_of(tree, etc="etc"))

    def cut(self, kind: str, change: Callable[[], object]) -> None:
        """Make a change of which every cut is looked at, and go on from one of them."""
        record = self.device.tree / "state/update/record.json"
        before = record.read_bytes() if record.exists() else None
        starts = crashstates.Starts(self.device.path, self.base / "scratch")
        old = starts.look()
        fd = os.open(self.device.path, os.O_RDWR)
        with crashstates.recorded(fd, self.base / "log") as log:
            log.mark(kind)
            change()
        os.close(fd)
        found, chosen = [], self.chance.random()
        with crashstates.read_log(self.base / "log") as log_of_it:
            for number, state in enumerate(crashstates.states(log_of_it, starts.scratch, orders=100), 1):
                start = starts.look()
                found.append((state, start))
                self.seen[kind] += 1
                self.torn[kind] += state.torn
                self.changed[kind] += start != old
                if self.chance.random() < 1 / number:
                    crashstates.Scratch(starts.scratch.path, self.base / "next").close()
        assert starts.scratch.same(self.device.path)
        new = starts.look()
        starts.scratch.close()
        for state, start in found:
            self.check(state, old, new, start)
        if chosen < 0.7:
            (self.base / "next").rename(self.device.path)
            if before is not None and chosen < 0.3:
                record.write_bytes(before)
            elif chosen < 0.4:
                record.unlink(missing_ok=True)

    def check(self, state: crashstates.State, old: Start, new: Start, found: Start) -> None:
        """All versions are whole, and what starts is not one that is bad while there is another."""
        where = (state, old, found)
        assert (found.broken, found.lost, found.problems) == ((), (), ()), where
        assert {one.partition("+")[0] for one in found.good} == {one.partition("+")[0] for one in old.good}, where
        assert found.first in (old.first, new.first, *found.good), where
        assert "+0-" not in found.first or all("+0-" in one for one in {*old.good} & {*new.good}), where

    def step(self) -> None:
        """Start with some counters, on an ESP with the rest of an earlier cut; then the change that was seen least."""
        for version in ("1.0", "1.1"):
            self.rename(version, *self.chance.choice([*_ALIVE, *_BAD, *_BAD, *_BAD]))
        self.leave_rest()
        running = self.device.boot()
        (other,) = {"1.0", "1.1"} - {running}
        status = cast("Status", self.ask("status"))
        bad = any(one["version"] == other and one["state"] == "bad" for one in status["images"])
        back = "renew" if bad else "leave"
        if self.seen[back] > self.seen["bless"]:
            self.cut("bless", lambda: self.ask("commit"))
        else:
            names = ["clear", "rollback"] if other in status["blocked"] else ["rollback"]
            self.cut(back, lambda: self.ask(*names, version=other))

    def rename(self, version: str, left: int, done: int) -> None:
        """Give the entry of a version other counters."""
        image = next(one for one in Disk.at(self.device.path).images() if one.version == version)
        with Disk.at(self.device.path).esp().changing() as esp:
            esp.rename(f"{FOLDER}/{image.entry.name}", replace(image.entry, left=left, done=done).name)

    def leave_rest(self) -> None:
        """What a cut leaves of a file that comes or goes and that the loader does not look at."""
        path, size = f"{FOLDER}/coming.new", self.chance.randrange(40_000)
        scratch = crashstates.Scratch(self.device.path, self.base / "scratch")
        fd = os.open(self.device.path, os.O_RDWR)
        with crashstates.recorded(fd, self.base / "log"), Disk.at(self.device.path).esp().changing() as esp:
            if path in esp.files():
                esp.remove(path)
            else:
                esp.add(path, [self.chance.randbytes(size)], size, epoch=0)
        os.close(fd)
        which = self.chance.randrange(60)
        with crashstates.read_log(self.base / "log") as log_of_it:
            for _ in islice(crashstates.states(log_of_it, scratch), which, which + 1):
                crashstates.Scratch(scratch.path, self.base / "next").close()
                (self.base / "next").rename(self.device.path)
        scratch.close()


_ALIVE = [(4, 0), (3, 1), (2, 2), (1, 3), (3, 0), (2, 1), (1, 2)]  # starts left and made
_BAD = [(0, 4), (0, 3)]


pytestmark = pytest.mark.timeout(7200)


@pytest.fixture
def walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Walk:
    async def ended(argv: Sequence[str]) -> None:
        assert main(argv[1:], tmp_path / "tree") == 0

    monkeypatch.setattr(programs, "ended", ended)
    return Walk(tmp_path, seed=1)


def test_no_change_of_counters_leaves_what_starts_nothing(
    walk: Walk, record_property: Callable[[str, object], None]
) -> None:
    """Blessed, left (rollback), and given its starts again after it had failed."""
    while min(walk.seen[kind] for kind in ("bless", "leave", "renew")) < STATES:
        walk.step()
    record_property("states", (walk.seen, walk.torn, walk.changed))
    assert walk.torn.total() > STATES // 5
    for kind in ("bless", "leave", "renew"):
        assert STATES // 10 < walk.changed[kind] < walk.seen[kind]


# -- a whole update ----------------------------------------------------------------------------------------------------

OLD, NEW, OTHER = "1.0.0", "1.1.0", "2.0.0"


class Updated:
    """A device that runs OLD, has OTHER in the other slot, which would be started next, and takes NEW.

    fetched: bytes that the last `update` has asked for; chosen: the step of it in which the state `next` was left.
    """

    def __init__(self, base: Path, offered: tuple[Path, Manifest, int]) -> None:
        self.device, self.offered, self.base = Device(base, OLD, root_of(OLD)), offered, base
        self.fetched, self.chosen = 0, ""
        self.device.boot()
        self.bless()
        self.running = self.look().root_hash
        assert self.running is not None
        self.order = order_for(offered[1], offered[2], self.running)
        self.device.install(OTHER, "b")

    def look(self) -> Boot:
        return look(Disk.at(self.device.path), text(self.device.tree / "run/mixos/slot"), self.device.tree)

    def bless(self) -> None:
        running = self.look().running
        assert running is not None
        if running.entry != running.entry.blessed():
            count(Disk.at(self.device.path), running.entry.name, running.entry.blessed().name)

    def update(self, mark: Callable[[str], None] = lambda step: None) -> None:
        """All that is done to the disk."""
        mark("stage")
        with served(self.offered[0]) as ranges:
            Stage(self.device.tree, self.order, lambda *step: None).run(ranges)
            self.fetched = ranges.fetched
        mark("seal")
        seal(self.device.tree, self.order)

    def cut(self, chance: random.Random) -> Iterator[tuple[crashstates.State, Start]]:
        """Make the update, and look at all that cuts may leave of it; one of those is in the file `next` then."""
        starts = crashstates.Starts(self.device.path, self.base / "scratch")
        fd = os.open(self.device.path, os.O_RDWR)
        with crashstates.recorded(fd, self.base / "log") as log:
            self.update(log.mark)
        os.close(fd)
        late = chance.random() < 0.5  # from one of the last ones
        with crashstates.read_log(self.base / "log") as log_of_it:
            for number, state in enumerate(crashstates.states(log_of_it, starts.scratch, torn=8, orders=40), 1):
                yield state, starts.look()
                if number == 1 or chance.random() < (0.1 if late else 1 / number):
                    crashstates.Scratch(starts.scratch.path, self.base / "next").close()
                    self.chosen = state.step
        assert starts.scratch.same(self.device.path)
        starts.scratch.close()

    @contextlib.contextmanager
    def failing(self, after: int) -> Iterator[crashstates.Recorder]:
        """A disk that takes no write after so many."""
        fd = os.open(self.device.path, os.O_RDONLY)
        with crashstates.recorded(fd, self.base / "log") as log:
            write = os.pwrite

            def fail(to: int, data: Any, offset: int) -> int:
                if log.ours(to) and log.written >= after:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return write(to, data, offset)

            with mock.patch.object(os, "pwrite", fail):
                yield log
        os.close(fd)

    def restarted(self) -> str:
        """The power is back, with `next` on the disk; gives the version that was started, and is good now."""
        (self.base / "next").rename(self.device.path)
        version = self.device.boot()
        self.bless()
        return version

    def finished(self) -> None:
        """Both versions are there, the new one is started first, and no rest is left."""
        old, new = Disk.at(self.device.path), self.look()
        assert [(one.version, one.entry.bad) for one in new.images] == [(NEW, False), (OLD, False)]
        assert {one.slot for one in new.images} == {"a", "b"}
        starts = crashstates.Starts(self.device.path, self.base / "finished")
        found = starts.look()
        starts.scratch.close()
        assert (len(found.good), found.broken, found.lost, found.problems) == (2, (), (), ())
        with old.esp().changing() as esp:
            assert esp.clean() == Cleaned(0, 0, 0, ())
            assert not [path for path in esp.files() if path.endswith(".new")]


def check(state: crashstates.State, found: Start) -> None:
    """OLD is whole, NEW as well or not there, and what the loader starts is one of them."""
    where = (state, found)
    assert found.first in found.good, where
    assert OLD in {found.versions[one] for one in found.good}, where
    assert (found.broken, found.lost) == ((), ()), where


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest, int]:
    return offer(tmp_path_factory.mktemp("offer"), NEW, earlier=OLD)


def test_no_cut_of_an_update_leaves_what_starts_nothing(
    tmp_path: Path,
    offered: tuple[Path, Manifest, int],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    """From what a cut has left, which is cut in turn, the update is made to its end each time."""
    monkeypatch.setattr(worker, "_confine", lambda *_: None)  # it would take the log away from the process
    chance, folders = random.Random(2), count_up()
    seen, torn, again, found = Counter[str](), Counter[str](), Counter[str](), set[object]()
    updated = Updated(tmp_path / str(next(folders)), offered)
    while min(seen["stage"], seen["seal"]) < STATES or min(again["stage"], again["seal"]) < 1 + STATES // 50:
        begun = updated.chosen
        for state, start in updated.cut(chance):
            check(state, start)
            seen[state.step] += 1
            torn[state.step] += state.torn
            found |= {(state.step, len(start.good), start.versions[start.first]), *start.problems}
        updated.finished()
        assert updated.fetched <= (0 if begun == "seal" else updated.order.transfer)
        again[begun] += 1
        if updated.restarted() != OLD:
            updated = Updated(tmp_path / str(next(folders)), offered)
    record_property("states", (seen, torn, again))
    assert min(torn.values()) > STATES // 4
    assert {("stage", 2, OTHER), ("stage", 1, OLD), ("seal", 1, OLD)} <= found
    assert {("seal", 2, NEW), "primary-entries-crc", "backup-entries-crc", "backup-differs"} <= found


def test_a_disk_that_fails_at_any_write_is_told_and_tried_again(
    tmp_path: Path, offered: tuple[Path, Manifest, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_confine", lambda *_: None)
    updated = Updated(tmp_path, offered)
    crashstates.Scratch(updated.device.path, tmp_path / "begin").close()
    with updated.failing(10**9) as log:
        updated.update()
    for after in range(log.written) if WHOLE else random.Random(3).sample(range(log.written), 8):
        crashstates.Scratch(tmp_path / "begin", updated.device.path).close()
        with updated.failing(after) as log, pytest.raises((MixosError, OSError)) as caught:
            updated.update()
        assert log.written == after
        assert getattr(caught.value, "reason", "slots-io") in {"slots-io", "esp-io"}
        starts = crashstates.Starts(updated.device.path, tmp_path / "failed")
        check(crashstates.State(f"after {after} writes", ""), starts.look())
        starts.scratch.close()
        updated.update()
        updated.finished()


_STAGE = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from daemon.slots import worker
worker.ACCOUNT = "nobody"
from daemon.slots.main import main
sys.exit(main(["stage", "{order}"], Path({tree!r})))
"""


def staged(updated: Updated, ranges: Ranges, most: int) -> int:
    """Have the program stage, and kill it after so many lines; gives how many it said."""
    order = os.memfd_create("order")
    os.write(order, updated.order.dump().encode())
    os.lseek(order, 0, os.SEEK_SET)
    code = _STAGE.format(root=str(ROOT), tree=str(updated.device.tree), order=order)
    with os.fdopen(os.dup(ranges.descriptors[0]), "rb", 0) as source:
        process = spawn([sys.executable, "-c", code], stdin=source, pass_fds=(order,))
    os.close(order)
    with process:
        said = sum(1 for _ in islice(process.stdout or (), most))
        children = psutil.Process(process.pid).children() if said == most else []
        process.kill()
    assert not psutil.wait_procs(children, timeout=60)[1]
    return said


def test_killed_at_any_step_it_goes_on(
    tmp_path: Path, offered: tuple[Path, Manifest, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who makes the windows ends with who has started it, and nothing stays locked."""
    monkeypatch.setattr(worker, "_confine", lambda *_: None)  # the program that is killed does confine itself
    updated = Updated(tmp_path, offered)
    crashstates.Scratch(updated.device.path, tmp_path / "begin").close()
    with served(offered[0]) as ranges:
        lines = staged(updated, ranges, 1000)
    assert lines > 4
    for most in range(lines) if WHOLE else (1, lines - 2):
        crashstates.Scratch(tmp_path / "begin", updated.device.path).close()
        with served(offered[0]) as ranges:
            assert staged(updated, ranges, most) == most
        updated.update()
        updated.finished()
