"""What the rescue entry does to a device: by the programs that do it on a running system, too."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.bundle import order as orders
from common.bundle.order import Order
from common.efi.entries import TRIES, Entry
from common.errors import DiskError, MixosError
from common.files import read_regular, write_durably
from daemon.linux import process, programs
from daemon.linux.facts import ROOT, release, text
from daemon.linux.tpm import DEVICE
from daemon.parts.update.boot import Disk, Image
from daemon.parts.update.fetching import fetching, settings
from daemon.parts.update.record import Record
from daemon.parts.update.serve import served
from daemon.rescue import found

FIRSTBOOT, NETWORK = "/usr/libexec/mixos-firstboot", "/usr/lib/mixos/init/network"
BUNDLES = "*.mixb"
KEY = "var/lib/mixos/update/key"  # of the device, for releases that are encrypted to it
TRUST = "var/lib/mixos/update/trust"  # where who verifies keeps what was trusted before, as on a running system
ACCOUNT = "update"
_MAX_TRUSTED = 16, 8 << 20  # files, and bytes of one
_UNREADABLE = MixosError, OSError, ValueError
_FILE_SYSTEMS = ("vfat", "ext4")
_MOST = 50  # bundles that are offered


def go_back(disk: Disk, versions: Sequence[found.Version]) -> Image | None:
    """Give starts to a version that was good, and that somebody went back from, now that no other is left: the image,
    None when there is none.

    They are fewer than a new version has, and so tell that this was done: a version that does not come up ends here for
    good. Raises MixosError.
    """
    if any(one.why is None for one in versions):
        return None
    for one in versions:
        entry = one.image.entry
        if one.left and one.image.slot is not None and entry.bad and entry.good:
            _count(entry, entry.counted(TRIES - 1, 0))
            return one.image
    return None


def start_first(disk: Disk, image: Image) -> None:
    """Have the loader start a version next: it gets its starts back, and those that would come before it have none any
    more. Raises MixosError."""
    if image.entry.bad:
        _count(image.entry, image.entry.renewed())
    images = disk.images()
    wanted = next(one for one in images if one.root_hash == image.root_hash)
    for one in images[: images.index(wanted)]:
        if one.entry.left:
            _count(one.entry, one.entry.given_up())


def _count(old: Entry, new: Entry) -> None:
    asyncio.run(_silent([*programs.SLOTS, "count", old.name, new.name]))


async def _silent(argv: Sequence[str], given: str = "") -> None:
    """Run one of our programs of which only an error is of interest. Raises what it tells."""
    async with aclosing(programs.lines(argv, given)) as lines:
        async for _ in lines:
            pass


def connected(root: Path = ROOT) -> bool:
    """Whether the network was asked for."""
    return (root / "run/mixos/net/wake").exists()


def connect(root: Path = ROOT) -> None:
    """Ask for a lease on each cable, from now on, as an ordinary start does. Raises MixosError."""
    process.run(["/bin/sh", "-c", f"setsid {NETWORK} >{root}run/mixos/network.log 2>&1 &"])


@dataclass(frozen=True)
class Bundle:
    """A file on a file system: its device and kind; the name is of the top folder."""

    device: Path
    kind: str
    name: str


def bundles(disk: Disk, root: Path = ROOT) -> list[Bundle]:
    """Those in the top folders of other disks: their partitions, or a disk without."""
    result: list[Bundle] = []
    for path in sorted((root / "sys/class/block").glob("sd*")):
        if path.name.startswith(disk.path.name) or (text(path / "size") or "0") == "0":
            continue
        device = root / "dev" / path.name
        for kind in _FILE_SYSTEMS:
            with contextlib.suppress(MixosError, OSError), found.mounted(device, kind, root=root) as folder:
                names = sorted(one.name for one in folder.glob(BUNDLES) if one.is_file() and not one.is_symlink())
                result += [Bundle(device, kind, name) for name in names]
                break
    return result[:_MOST]


# -- a bundle ----------------------------------------------------------------------------------------------------------

Say = Callable[[str], None]


def install(disk: Disk, bundle: Bundle | str, say: Say, root: Path = ROOT) -> str:
    """Verify a bundle (a file, or its URL), write it into the slot that is not kept, and have it started next; the
    version. Raises MixosError, OSError."""
    return asyncio.run(_install(_known(disk, root), bundle, say, root)).version


async def _install(known: Known, bundle: Bundle | str, say: Say, root: Path) -> Order:
    order: Order | None = None
    floor = await _floor_in_tpm(root, say)
    async with _source(bundle, known, root) as source:
        say("verifying ...\n")
        facts = json.dumps({**known.facts, "floor": max(known.facts["floor"], floor)})
        async with aclosing(programs.lines([*programs.RELEASE, "verify"], facts, source)) as lines:
            async for line in lines:
                order = orders.parse(line["order"])
        if order is None:
            raise MixosError("nothing was said of the bundle", reason="program-failed")
        say(f"version {order.version}\n")
        shown = ""
        async with aclosing(programs.lines([*programs.SLOTS, "stage"], order.dump(), source)) as lines:
            async for line in lines:
                now = f"{line['step']} {100 * line['done'] // max(1, line['of'])} %\n" if "step" in line else ""
                if now != shown:
                    say(now)
                shown = now
    await _silent([*programs.SLOTS, "seal"], order.dump())
    return order


@contextlib.asynccontextmanager
async def _source(bundle: Bundle | str, known: Known, root: Path) -> AsyncIterator[int]:
    """A socket where ranges of a bundle are answered for. Raises MixosError."""
    if isinstance(bundle, str):
        async with fetching("ranges", {"url": bundle, **known.servers}) as source:
            yield source
        return
    with found.mounted(bundle.device, bundle.kind, root=root) as folder, served(str(folder / bundle.name)) as source:
        yield source


@dataclass(frozen=True)
class Known:
    """facts: by which a release is judged (`daemon.release`); servers: as `fetching.settings` says."""

    facts: dict[str, Any]
    servers: dict[str, Any]


def _known(disk: Disk, root: Path) -> Known:
    """Of this image, and of the device, as far as its data can be read. A version that failed may be installed again:
    that is what one is here for. Raises OSError."""
    record, servers, says = Record(), {}, release(root)
    folder = root / TRUST
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True)
    with contextlib.suppress(*_UNREADABLE), found.data(disk) as layers:  # what is damaged is so for itself
        with contextlib.suppress(*_UNREADABLE):
            record = found.record_in(layers)
        with contextlib.suppress(*_UNREADABLE):
            servers = settings(layers / found.ETC / "mixos")
        with contextlib.suppress(*_UNREADABLE):
            write_durably(root / KEY, read_regular(layers / found.VAR / KEY.removeprefix("var/"), 64), 0o600)
        for one in sorted((layers / found.VAR / TRUST.removeprefix("var/")).glob("*"))[: _MAX_TRUSTED[0]]:
            (folder / one.name).write_bytes(read_regular(one, _MAX_TRUSTED[1]))
    if os.geteuid() == 0:
        for path in (folder, *folder.iterdir()):
            shutil.chown(path, ACCOUNT, ACCOUNT)
    values: dict[str, Any] = {
        "machine": os.uname().machine,
        "variant": says.get("MIXOS_VARIANT", "default"),
        "sequence": int(says.get("MIXOS_SEQUENCE", "0")),
        "floor": record.lowest(says, good=True),  # the device began with this image
        "epoch": int(says.get("MIXOS_EPOCH", "0")),
        "root-hash": "",
    }
    return Known(values, servers)


async def _floor_in_tpm(root: Path, say: Say) -> int:
    """0 when there is none; what a TPM does not tell is said, and counts for nothing."""
    if not (root / DEVICE).exists():
        return 0
    try:
        found = (await programs.ended([*programs.FLOOR, "read"])).get("floor")
    except MixosError as error:
        say(f"the downgrade floor in the TPM is not known: {error.message}\n")
        return 0
    return found if type(found) is int else 0


def reset(disk: Disk) -> None:
    """Make the data partition anew: the next start is like the first one. Raises MixosError."""
    device = found.data_device(disk)
    if device is None:
        raise DiskError("there is no data partition", reason="disk-table")
    process.run([FIRSTBOOT, "erase", str(disk.path), str(device)])
