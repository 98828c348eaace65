"""Factory reset: what a cut leaves, and that it begins again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from unittest import mock
from uuid import UUID

import pytest

from buildsys.run import run
from common.disk import gpt
from common.errors import DiskError, FormatError, RefusedError
from daemon import erase, firstboot
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.erase import NAMES
from daemon.parts.system.part import Reset, SystemPart
from daemon.slots.main import main
from image import layout
from tests import crashstates
from tests.slots import Device

ADMIN = Caller(Role.ADMIN, 0, 0, 1, "somebody", "local")
MIB = 1 << 20
ROOT_AT, DATA_AT, DATA_SIZE = MIB, 2 * MIB, 8 * MIB


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A root, and a data partition full of what nobody knows."""
    path = tmp_path / "disk"
    kind = gpt.TYPE_LINUX_DATA
    root = gpt.Partition(1, kind, UUID(int=1), ROOT_AT // 512, DATA_AT // 512 - 1, "mixos-root-a")
    data = gpt.Partition(2, kind, UUID(int=2), DATA_AT // 512, (DATA_AT + DATA_SIZE) // 512 - 1, firstboot.PARTITION)
    with path.open("w+b") as stream:
        stream.truncate(DATA_AT + DATA_SIZE + MIB)
        gpt.write(stream.fileno(), gpt.Table(UUID(int=9), (DATA_AT + DATA_SIZE + MIB) // 512, (root, data)))
        os.pwrite(stream.fileno(), b"root".ljust(512, b".") * 2048, ROOT_AT)
        os.pwrite(stream.fileno(), b"LUKS" + os.urandom(508) * (DATA_SIZE // 508), DATA_AT)
        os.truncate(stream.fileno(), DATA_AT + DATA_SIZE + MIB)
        gpt.write(stream.fileno(), gpt.Table(UUID(int=9), (DATA_AT + DATA_SIZE + MIB) // 512, (root, data)))
    return path


@contextmanager
def mirrored(disk: Path, partition: Path) -> Iterator[None]:
    """What is written to a copy of the data partition is written to the disk as well, as a kernel does."""
    pwrite, fsync = os.pwrite, os.fsync
    with partition.open("rb") as copy, disk.open("r+b") as whole:
        known = os.fstat(copy.fileno())

        def write(to: int, data: Any, offset: int) -> int:
            if os.path.samestat(os.fstat(to), known):
                pwrite(whole.fileno(), data, DATA_AT + offset)
            return pwrite(to, data, offset)

        def sync(of: int) -> None:
            fsync(whole.fileno() if os.path.samestat(os.fstat(of), known) else of)

        with mock.patch.object(os, "pwrite", write), mock.patch.object(os, "fsync", sync):
            yield


def mke2fs(partition: Path) -> Callable[..., int]:
    """The real one, on a copy; what it changes is then written to the partition, a block at a time."""

    def make(argv: list[str], **_: Any) -> int:
        copy = partition.with_name("made")
        shutil.copyfile(partition, copy)
        run([Path(argv[0]).name, *argv[1:-1], copy])
        before, after = partition.read_bytes(), copy.read_bytes()
        with partition.open("r+b") as stream:
            for at in range(0, len(after), 4096):
                if before[at : at + 4096] != after[at : at + 4096]:
                    os.pwrite(stream.fileno(), after[at : at + 4096], at)
            os.fsync(stream.fileno())
        return 0

    return make


def erased(disk: Path) -> None:
    """`erase` on a disk image; the data partition is a file of its own meanwhile."""
    partition = disk.with_name("partition")
    partition.write_bytes(disk.read_bytes()[DATA_AT : DATA_AT + DATA_SIZE])
    with mirrored(disk, partition):
        erase.erase(disk, partition, mke2fs(partition), say=lambda text: None)


def want(disk: Path, how: erase.How | None) -> None:
    with disk.open("r+b") as stream:
        erase.want(stream.fileno(), how)


def clean(disk: Path) -> bool:
    """Whether there is a whole and empty file system, and nothing of what was there before."""
    area = disk.read_bytes()[DATA_AT : DATA_AT + DATA_SIZE]
    part = disk.with_name("checked")
    part.write_bytes(area)
    return run(["e2fsck", "-f", "-n", part], allow=range(256)).status == 0 and b"LUKS" not in area[:4096]


@pytest.mark.parametrize("how", ["erase", "overwrite"])
def test_every_cut_leaves_the_old_data_or_a_reset_that_begins_again(
    disk: Path, tmp_path: Path, how: erase.How, record_property: Callable[[str, object], None]
) -> None:
    root, ends = (ROOT_AT, MIB), 34 * 512
    size = disk.stat().st_size
    area = (DATA_AT, DATA_SIZE)
    scratch = crashstates.Scratch(disk, tmp_path / "scratch", [(0, ends), (size - ends, ends), root, area])
    old = disk.read_bytes()[DATA_AT : DATA_AT + DATA_SIZE]
    with disk.open("r+b") as stream, crashstates.recorded(stream.fileno(), tmp_path / "log") as log:
        log.mark("want")
        want(disk, how)
        log.mark("erase")
        erased(disk)
    new = disk.read_bytes()[DATA_AT : DATA_AT + DATA_SIZE]
    assert clean(disk)
    seen: Counter[tuple[str, str | None]] = Counter()
    problems: set[str] = set()
    torn = redone = 0

    def content() -> str:
        found = os.pread(scratch.fd, DATA_SIZE, DATA_AT)
        return {old: "old", new: "new"}.get(found, "between")

    for number, state in enumerate(
        crashstates.states(crashstates.read_log(tmp_path / "log"), scratch, torn=60, orders=3000)
    ):
        table = gpt.read(scratch.fd)
        _, wanted = erase.wanted(table)
        assert wanted in (None, how)
        if wanted is None:
            assert scratch.once(content, [area]) == ("old" if state.step == "want" else "new"), state
        assert os.pread(scratch.fd, MIB, ROOT_AT).startswith(b"root"), state
        problems |= set(table.problems)
        torn += "of" in state.name
        seen[state.step, wanted] += 1
        if number % 500 == 200 and state.step == "erase":  # as the next boot does
            again = tmp_path / "again"
            shutil.copyfile(scratch.path, again)
            if wanted is not None:
                erased(again)
            assert clean(again), state
            assert erase.wanted(gpt.read(again)) == (gpt.read(again).find(firstboot.PARTITION), None)
            redone += 1
    record_property("states", dict(seen))
    assert scratch.same(disk)
    assert sum(seen.values()) > 2000
    assert torn > 100
    assert redone > 3
    assert {("want", None), ("want", how), ("erase", how), ("erase", None)} <= set(seen)
    assert {"primary-entries-crc", "backup-entries-crc", "backup-differs"} <= problems


def test_what_is_overwritten_is_gone(disk: Path) -> None:
    with disk.open("r+b") as stream:
        os.pwrite(stream.fileno(), b"a secret", DATA_AT + 5 * MIB)
    shutil.copyfile(disk, other := disk.with_name("other"))
    erased(disk)
    assert b"a secret" in disk.read_bytes()  # a plain file has no discard
    want(other, "overwrite")
    erased(other)
    assert b"a secret" not in other.read_bytes()


def test_a_reset_that_nobody_wanted_before_is_wanted_first(disk: Path) -> None:
    """As in the rescue system: a cut in the middle goes on with the next boot."""

    def cut(argv: list[str], **_: Any) -> int:
        raise OSError(5, "Input/output error")

    partition = disk.with_name("partition")
    partition.write_bytes(disk.read_bytes()[DATA_AT : DATA_AT + DATA_SIZE])
    with mirrored(disk, partition), pytest.raises(OSError, match="Input"):
        erase.erase(disk, partition, cut, say=lambda text: None)
    assert erase.wanted(gpt.read(disk))[1] == "erase"
    erased(disk)
    assert clean(disk)


def test_it_can_be_taken_back_until_it_is_done(disk: Path) -> None:
    before = disk.read_bytes()
    want(disk, "erase")
    assert gpt.read(disk).partitions[1].name == NAMES["erase"]
    want(disk, "overwrite")
    want(disk, None)
    assert disk.read_bytes() == before


def test_a_partition_that_somebody_uses_is_left(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def busy(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        if flags & os.O_EXCL:
            raise OSError(16, "Device or resource busy")
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", busy)
    with pytest.raises(DiskError) as caught:
        erase.erase(disk, disk, lambda *_, **__: 0)
    assert caught.value.reason == "erase-mounted"
    assert erase.wanted(gpt.read(disk))[1] is None


def test_two_data_partitions_are_a_foreign_disk(disk: Path) -> None:
    with disk.open("r+b") as stream:
        table = gpt.read(stream.fileno())
        gpt.write(stream.fileno(), table.replaced(replace(table.partitions[0], name=firstboot.PARTITION)))
    with pytest.raises(FormatError):
        want(disk, "erase")


def test_the_program_that_writes_disks_says_it_in_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    device = Device(tmp_path)
    for word, name in (("erase", NAMES["erase"]), ("overwrite", NAMES["overwrite"]), ("cancel", firstboot.PARTITION)):
        assert main(["reset", word], device.tree) == 0
        assert gpt.read(device.path).find(name).index == layout.DATA
    assert main(["reset", "all"], device.tree) == 2
    assert main(["reset"], device.tree) == 2
    device.path.write_bytes(bytes(MIB))
    assert main(["reset", "erase"], device.tree) != 0


def asked(tmp_path: Path, hostname: str, writer: Sequence[str], *, overwrite: bool = False) -> list[signal.Signals]:
    """What init is asked for, by whoever calls `system.reset`."""
    found: list[signal.Signals] = []
    part = SystemPart(Context(run=tmp_path), dict, found.append, writer)
    method = next(one for one in part.methods() if one.name == "system.reset")

    async def call() -> None:
        await cast("Awaitable[Any]", method.handler(ADMIN, Reset(hostname=hostname, overwrite=overwrite)))
        await until(lambda: bool(found))

    asyncio.run(call())
    return found


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_daemon_has_it_written_down_and_restarts(tmp_path: Path) -> None:
    writer = ("/bin/sh", "-c", f'echo "$@" >{tmp_path}/words', "writer")
    assert asked(tmp_path, os.uname().nodename, writer) == [signal.SIGTERM]
    assert (tmp_path / "words").read_text() == "reset erase\n"
    asked(tmp_path, os.uname().nodename, writer, overwrite=True)
    assert (tmp_path / "words").read_text() == "reset overwrite\n"


def test_another_devices_name_or_a_disk_that_takes_nothing_erases_nothing(tmp_path: Path) -> None:
    with pytest.raises(RefusedError) as refused:
        asked(tmp_path, "another", ("/bin/false",))
    assert refused.value.reason == "reset-name"
    with pytest.raises(DiskError) as failed:
        asked(tmp_path, os.uname().nodename, ("/bin/false",))
    assert failed.value.reason == "reset-write"
