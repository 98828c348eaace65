"""The health of each disk, by whatever way there is to ask it; "unknown", with the reason, where there is none."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from common.errors import MixosError
from daemon.linux.facts import ROOT, text
from daemon.parts.storage import disks
from daemon.parts.storage.verdict import Finding, unknown, verdict

if TYPE_CHECKING:
    from daemon.parts.storage.answers import Health

_WITHOUT = {
    "virtio": "a virtual disk has no SMART: ask the machine that it belongs to",
    "usb": "disks behind USB bridges are not asked: some bridges hang when they are",
    "scsi": "this kind of disk is not asked: only NVMe, ATA and eMMC are",
    "other": "this kind of disk has no SMART",
}


def health(root: Path = ROOT) -> list[Health]:
    """A row per disk: name, kind, state, findings and what else it tells."""
    rows = ({"name": name, "kind": disks.kind(name, root), **one(name, root)} for name in disks.names(root))
    return [cast("Health", row) for row in rows]


def one(name: str, root: Path = ROOT) -> dict[str, Any]:
    """The health of one disk; nothing is raised, a failure is the finding of an unknown state."""
    kind = disks.kind(name, root)
    device = root / "dev" / name
    try:
        if kind == "nvme":
            from daemon.parts.storage import nvme

            return nvme.parse(nvme.read(device))
        if kind == "ata":
            from daemon.parts.storage import ata

            return ata.read(device)
        if kind == "mmc":
            return mmc(root / "sys/block" / name / "device")
    except MixosError as error:
        return unknown(error.reason, error.message)
    return unknown("no-smart", _WITHOUT[kind])


def mmc(folder: Path) -> dict[str, Any]:
    """eMMC tells its wear in steps of a tenth (JEDEC JESD84-B51, 7.4: DEVICE_LIFE_TIME_EST, PRE_EOL_INFO); cards
    (SD) do not."""
    wear = [int(word, 16) for word in (text(folder / "life_time") or "").split() if _is_hex(word)]
    end = text(folder / "pre_eol_info") or ""
    if not any(wear) or not _is_hex(end):
        return unknown("no-smart", "this card does not tell its wear")
    worst = max(wear)
    found = []
    if int(end, 16) >= 3:
        found.append(Finding("failing", "spare-low", "nine tenths of the reserved blocks are used"))
    elif int(end, 16) == 2:
        found.append(Finding("warning", "spare-low", "eight tenths of the reserved blocks are used"))
    if worst >= 11:
        found.append(Finding("warning", "worn", "its planned life is over"))
    return {**verdict(found), "used-percent": min(worst, 11) * 10}


def _is_hex(word: str) -> bool:
    return word.startswith("0x") and len(word) <= 6 and all(one in "0123456789abcdefABCDEF" for one in word[2:] or "-")
