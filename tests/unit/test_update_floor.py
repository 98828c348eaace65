"""The part `update` and the downgrade floor: on the data partition, in the image, in a TPM (a software one)."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from common.errors import MixosError
from daemon import floor as program
from daemon.linux.tpm import Tpm
from daemon.parts.update import floor as module
from daemon.parts.update import starts, taking
from daemon.rescue import repair
from tests import softtpm, updatepart
from tests.hostpackages import ROOT
from tests.slots import Device
from tests.softtpm import SoftTpm
from tests.updatepart import ask, slots
from tests.waiting import eventually


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(starts, "PAUSE", 0.01)
    monkeypatch.setattr(starts, "STABLE", 0.03)
    monkeypatch.setattr(taking, "ACCOUNT", "nobody")


@pytest.fixture
def device(tmp_path):
    found = Device(tmp_path)
    (found.tree / "usr/lib/mixos").mkdir(parents=True)
    image(found, 0)
    found.boot()
    return found


@pytest.fixture
def tpm(device):
    with SoftTpm(device.tree / "dev/tpmrm0") as machine:
        yield machine


def image(device, floor):
    (device.tree / "usr/lib/mixos/release").write_text(f"MIXOS_SEQUENCE=9\nMIXOS_FLOOR={floor}\n")


def words(code, device):
    return (sys.executable, "-c", code.format(root=os.fspath(ROOT), tree=os.fspath(device.tree)))


def run(device, scenario, code=softtpm.PROGRAM):
    """Bring the part up, do something, end it; gives what `scenario` gives."""
    return updatepart.run(device.tree, scenario, slots=slots(device.tree), floor=words(code, device))


async def status(update):
    found = await ask(update, "status")
    return found["floor"], found["floor-in-tpm"], found["floor-problem"]


async def settled(update):
    """Once what runs was called good, and the TPM has done what it was asked."""
    await eventually(lambda: update.starts.well)
    await eventually(lambda: update.starts.floor.now == 0 or update.starts.floor.in_tpm or update.starts.floor.problem)
    return await status(update)


async def good(update):
    await eventually(lambda: update.starts.well)
    return await status(update)


async def known(update):
    """Without having been called good."""
    await update.starts.floor.known()
    return await status(update)


def in_tpm(machine):
    found = program.kept(Tpm(machine.descriptor))
    machine.close()
    return found


def forget(device):
    """What a factory reset does, or somebody who can write the data partition."""
    (device.tree / "state/update/record.json").unlink()


def test_without_a_tpm_the_data_keep_it(device):
    image(device, 8)
    assert run(device, good) == (8, False, None)


def test_it_is_raised_only_once_the_version_is_good(device, tpm, monkeypatch):
    image(device, 8)
    monkeypatch.setattr(starts, "STABLE", 3600.0)
    assert run(device, known) == (0, False, None)
    assert in_tpm(tpm) is None
    monkeypatch.setattr(starts, "STABLE", 0.03)
    assert run(device, settled) == (8, True, None)
    assert in_tpm(tpm) == 8


def test_the_tpm_outlives_the_data(device, tpm):
    image(device, 8)
    run(device, settled)
    image(device, 2)  # an older version runs, and knows nothing
    forget(device)
    assert run(device, known) == (8, True, None)
    assert in_tpm(tpm) == 8


def test_the_image_counts_when_the_data_are_gone(device):
    """It was called good before: no commit writes its floor again."""
    image(device, 8)
    run(device, good)
    forget(device)
    device.boot()
    assert run(device, good) == (8, False, None)


def test_a_cut_between_data_and_tpm_is_made_good_by_the_next_start(device, tpm):
    image(device, 8)
    run(device, good, "raise SystemExit(1)")  # the data have it, the TPM does not
    assert in_tpm(tpm) is None
    device.boot()
    assert run(device, settled) == (8, True, None)
    assert in_tpm(tpm) == 8


def test_what_somebody_removed_is_told_and_kept_anew(device, tpm):
    image(device, 8)
    run(device, settled)
    Tpm(tpm.descriptor).undefine(program.PLACES[0])
    tpm.close()

    async def told(update):
        floor, kept, problem = await settled(update)
        return floor, kept, "kept 8" in problem, [one.check for one in update.findings()]

    assert run(device, told) == (8, True, True, ["floor-tpm"])
    assert in_tpm(tpm) == 8
    assert run(device, settled) == (8, True, None)


def test_a_lower_floor_in_the_tpm_lowers_nothing(device, tpm):
    """It was removed, and another one made."""
    image(device, 8)
    run(device, settled)
    chip = Tpm(tpm.descriptor)
    chip.undefine(program.PLACES[0])
    program.keep(chip, 1)
    tpm.close()
    assert run(device, settled) == (8, True, "the TPM kept 8, and does not any more")
    assert in_tpm(tpm) == 8


def test_a_tpm_that_is_gone_is_told_once(device, tpm):
    image(device, 8)
    run(device, settled)
    (device.tree / "dev/tpmrm0").unlink()
    assert run(device, good) == (8, False, "the TPM kept 8, and does not any more")
    assert run(device, good) == (8, False, None)


BROKEN = {
    "refuses": 'print(\'{{"error": {{"error": "x", "reason": "tpm-failed", "hint": null, "exit_code": 14, '
    '"retryable": false}}}}\')',
    "says nothing": "",
    "says something negative": "print('{{\"floor\": -8}}')",
    "dies": "import os; os.abort()",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_tpm_keeps_no_version_from_being_good(device, how):
    image(device, 8)
    (device.tree / "dev/tpmrm0").touch()

    async def told(update):
        await eventually(lambda: update.starts.well and update.starts.floor.problem)
        return await status(update), [one.check for one in update.findings()], update.starts.well

    (floor, kept, problem), checks, well = run(device, told, BROKEN[how])
    assert (floor, kept, checks, well) == (8, False, ["floor-tpm"], True)
    assert problem


def test_a_tpm_that_never_answers_holds_up_nothing(device, monkeypatch):
    image(device, 8)
    (device.tree / "dev/tpmrm0").touch()
    monkeypatch.setattr(module, "WAIT", 0.1)

    async def told(update):
        await eventually(lambda: update.starts.well)
        return await update.starts.floor.known()

    assert run(device, told, "import time; time.sleep(1000)") == 8
    monkeypatch.setattr(module, "SECONDS", 0.5)

    async def given_up(update):
        await eventually(lambda: update.starts.floor.problem)
        return update.starts.well or await good(update)

    assert run(device, given_up, "import time; time.sleep(1000)")


def test_who_judges_a_release_is_told_the_floor_of_the_tpm(device, tpm, monkeypatch):
    program.keep(Tpm(tpm.descriptor), 41)
    tpm.close()
    asked = []

    async def lines(argv, given="", source=None):
        asked.append(given)
        raise MixosError("enough", reason="enough")
        yield

    async def judged(update):
        await eventually(lambda: update.starts.well)
        monkeypatch.setattr("daemon.parts.update.taking.programs.lines", lines)
        with pytest.raises(MixosError):
            await update.releases._taking._asked("verify", update.starts.boot, 0, {})

    run(device, judged)
    assert '"floor": 41' in asked[0]


def test_the_rescue_entry_asks_the_tpm(device, tpm, monkeypatch):
    said = []
    monkeypatch.setattr("daemon.rescue.repair.programs.FLOOR", words(softtpm.PROGRAM, device))
    assert asyncio.run(repair._floor_in_tpm(device.tree, said.append)) == 0
    program.keep(Tpm(tpm.descriptor), 41)
    tpm.close()
    assert asyncio.run(repair._floor_in_tpm(device.tree, said.append)) == 41
    assert not said
    monkeypatch.setattr("daemon.rescue.repair.programs.FLOOR", words(BROKEN["refuses"], device))
    assert asyncio.run(repair._floor_in_tpm(device.tree, said.append)) == 0
    assert said
