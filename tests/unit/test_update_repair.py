"""`update.examine` and `update.repair`: what the part makes of what `mixos-slots` tells."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from common.bundle.order import Order
from common.disk import gpt
from common.efi.entries import FOLDER
from common.errors import MixosError, RefusedError
from daemon.parts.update import taking
from daemon.parts.update.boot import Disk
from daemon.parts.update.part import Update
from daemon.slots.disk import Slot
from daemon.slots.repair import repair
from daemon.slots.seal import seal
from daemon.slots.stage import Stage
from tests import updatepart
from tests.offers import offer, order_for, root_of, served
from tests.slots import Device
from tests.updatepart import Result, ask, context_of, program, slots

OLD, NEW = "1.0.0", "1.1.0"


def verified(order: Order) -> tuple[str, ...]:
    """`mixos-release` that finds this in a bundle."""
    return program(f"print({json.dumps({'order': order.dump()})!r})")


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr(taking, "ACCOUNT", "daemon")  # user and group
    found = Device(tmp_path, OLD, root_of(OLD))
    found.boot()
    repair(found.tree)
    return found


def run(device: Device, scenario: Callable[[Update], Awaitable[Result]], release: tuple[str, ...] = ()) -> Result:
    """Bring the part up, with an account that is there for its programs, and do something with it."""
    own = slots(device.tree, "from daemon.slots import worker; worker.ACCOUNT = 'nobody'")
    return updatepart.run(device.tree, scenario, context_of(device.tree, etc="etc"), slots=own, release=release)


async def last(update: Update, name: str, **params: object) -> dict[str, Any]:
    """The last item of a stream."""
    found: dict[str, Any] = (await ask(update, name, **params))[-1]
    return found


def flip(device: Device, at: int) -> None:
    with device.path.open("r+b") as disk:
        old = os.pread(disk.fileno(), 1, at)[0]
        os.pwrite(disk.fileno(), bytes([old ^ 1]), at)


def test_what_is_wrong_is_told_and_mended_and_remembered(device: Device) -> None:
    flip(device, 512 + 40)

    async def scenario(update: Update) -> tuple[dict[str, Any], dict[str, Any]]:
        return await last(update, "examine"), await last(update, "repair")

    found, mended = run(device, scenario)
    assert (found["report"]["problems"], found["mended"]) == (["table primary-header-crc"], [])
    assert (mended["report"]["problems"], mended["mended"]) == ([], ["table primary-header-crc"])
    assert mended["step"] == "done"

    (row, *_) = [one for one in run(device, lambda update: ask(update, "history")) if one["what"] == "repaired"]
    assert row["reason"] == "by somebody: table primary-header-crc"


def test_nothing_is_remembered_when_nothing_was_wrong(device: Device) -> None:
    async def scenario(update: Update) -> tuple[dict[str, Any], list[str]]:
        return await last(update, "repair"), [one.what for one in update.starts.records.now.history]

    found, history = run(device, scenario)
    assert (found["report"]["problems"], found["mended"]) == ([], [])
    assert "repaired" not in history


def test_a_disk_that_could_not_be_read_is_watched_once_it_was_repaired(device: Device) -> None:
    """The part is up without it, and says why."""
    flip(device, Disk.at(device.path).table.find("mixos-esp").offset + 14)

    async def scenario(update: Update) -> tuple[object, list[str], object]:
        before = update.status()["problem"]
        found = await last(update, "repair")
        return before, found["mended"], update.status()

    before, mended, after = run(device, scenario)
    assert before
    assert mended == ["esp boot-sector"]
    assert cast(dict[str, Any], after)["problem"] is None
    assert cast(dict[str, Any], after)["next"] == OLD


def test_what_runs_without_an_entry_gets_one(device: Device) -> None:
    with Disk.at(device.path).esp().changing() as esp:
        esp.remove(f"{FOLDER}/{device.names()[0]}")

    async def scenario(update: Update) -> tuple[bool, list[str], bool]:
        before = update.starts.boot.running is None
        return before, (await last(update, "repair"))["mended"], update.starts.boot.running is not None

    assert run(device, scenario) == (True, ["slot-a entry missing"], True)


@contextmanager
def bundle(path: Path) -> Iterator[int]:
    """A socket where it comes from."""
    with served(path) as ranges:
        yield ranges.descriptors[0]


async def by_bundle(update: Update, path: Path) -> list[dict[str, Any]]:
    with bundle(path) as source:
        return [one async for one in update.releases._taking.repair(update.starts.boot, source)]


def test_the_other_slot_is_repaired_by_its_bundle(device: Device, tmp_path: Path) -> None:
    """Sealed by an update, started, and damaged since."""
    path, manifest, payload = offer(tmp_path / "offer", NEW, earlier=OLD)
    order = order_for(manifest, payload, Disk.at(device.path).images()[0].root_hash or b"")

    async def good(update: Update) -> None:
        await update.starts.commit()

    run(device, good)
    with served(path) as ranges:
        Stage(device.tree, order, lambda *step: None, "nobody").run(ranges)
    seal(device.tree, order)
    flip(device, Slot.of(Disk.at(device.path), "b").root[1] + 5000)

    async def scenario(update: Update) -> list[dict[str, Any]]:
        return await by_bundle(update, path)

    items = run(device, scenario, verified(order))
    assert items[-1]["mended"] == ["slot-b data damaged"]
    assert items[-1]["report"]["problems"] == []
    assert {one["step"] for one in items} == {"start", "root", "kernel", "files", "verify", "done"}
    assert {one["version"] for one in items} == {NEW}


def test_what_is_only_staged_stays_so(device: Device, tmp_path: Path) -> None:
    path, manifest, payload = offer(tmp_path / "offer", NEW, earlier=OLD)
    order = order_for(manifest, payload, Disk.at(device.path).images()[0].root_hash or b"")

    async def scenario(update: Update) -> tuple[dict[str, Any], str | None]:
        await update.starts.commit()
        with bundle(path) as source:
            async for _ in update.releases._taking.stage(update.starts.boot, source, False):
                pass
        flip(device, Slot.of(Disk.at(device.path), "b").root[1] + 5000)
        items = await by_bundle(update, path)
        return items[-1], update.starts.records.now.staged.version if update.starts.records.now.staged else None

    found, staged = run(device, scenario, verified(order))
    assert (found["report"]["problems"], staged) == ([], NEW)
    assert [image.version for image in Disk.at(device.path).images()] == [OLD]


def test_what_runs_is_refused(device: Device, tmp_path: Path) -> None:
    path, manifest, payload = offer(tmp_path / "offer", OLD)
    order = order_for(manifest, payload, bytes(32))

    async def scenario(update: Update) -> MixosError:
        with pytest.raises(RefusedError) as caught:
            await by_bundle(update, path)
        return caught.value

    assert run(device, scenario, verified(order)).reason == "update-same"
    assert gpt.read(device.path).problems == ()
