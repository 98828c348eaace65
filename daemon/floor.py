"""`mixos-floor read | raise NUMBER`: the downgrade floor that a TPM keeps.

It is an ordinary index that holds the number and is then locked for good (`TPMA_NV_WRITEDEFINE`): whoever has the TPM's
owner password (it is empty, unless somebody set one) can remove it, and nobody can change it. There are two places. A
higher number goes into the one that is free, and only once it is locked there the lower one is removed, so a cut at any
moment leaves the old number or the new one. An index that is not locked counts for nothing.

A counter (`TPM_NT_COUNTER`) does for small steps only: it goes up by one, with a write of the TPM's memory each time.
And it begins at the highest value that any counter of that TPM ever had, so that it needs a base, which would have to
be an index like this one. Here any step is four commands, and a start that raises nothing writes nothing.

It says one line of JSON and ends with status 0: `{"floor": …}`, null when there is none; or `{"error": …}` and its
exit code. It has the TPM, which is opened first, and nothing else: no account but `update`, no capability, no file.
"""

from __future__ import annotations

import json
import os
import pwd
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from common.errors import MixosError, TpmError, UsageError
from common.streams import open_missing
from daemon.linux.become import become, keep_only
from daemon.linux.tpm import AUTHREAD, AUTHWRITE, DEVICE, NO_DA, WRITEALL, WRITEDEFINE, WRITELOCKED, WRITTEN, Tpm

ACCOUNT = "update"
USAGE = "usage: mixos-floor read | raise NUMBER"
HIGHEST = (1 << 53) - 1  # of a sequence
PLACES = (0x01A6F000, 0x01A6F001)  # within what is the owner's (TCG registry of reserved TPM 2.0 handles, 2.2)
ATTRIBUTES = AUTHREAD | AUTHWRITE | WRITEALL | WRITEDEFINE | NO_DA
CONTENT = struct.Struct(">8sQ")
MAGIC = b"MIXOSFLR"


class Place(NamedTuple):
    """free: not defined; begun: ours, not locked yet; kept: locked, with the floor; taken: somebody else's."""

    handle: int
    state: Literal["free", "begun", "kept", "taken"]
    floor: int = -1


def main(argv: Sequence[str], root: Path = Path("/")) -> int:
    """See the module; returns the exit code."""
    open_missing()
    try:
        match argv:
            case ["read"]:
                _say(floor=kept(_tpm(root)))
            case ["raise", number] if number.isascii() and number.isdigit() and len(number) < 17:
                _say(floor=keep(_tpm(root), int(number)))
            case _:
                raise UsageError(USAGE, reason="usage")
    except MixosError as error:
        _say(error=error.as_json())
        return error.exit_code
    return 0


def kept(tpm: Tpm) -> int | None:
    """The floor, None when there is none. Raises TpmError."""
    return _highest([_look(tpm, index) for index in PLACES])


def keep(tpm: Tpm, floor: int) -> int:
    """Have the TPM keep a floor, unless it keeps a higher one; gives the one that it keeps then.

    Raises TpmError: `tpm-taken` when somebody else has the places; what `Tpm` raises.
    """
    if not 0 <= floor <= HIGHEST:
        raise UsageError(f"{floor} is no floor", reason="usage")
    places = [_look(tpm, index) for index in PLACES]
    before = _highest(places)
    if before is not None and before >= floor:
        _clear(tpm, places, before)
        return before
    _add(tpm, places, before, floor)
    places = [_look(tpm, index) for index in PLACES]
    if _highest(places) != floor:
        raise TpmError("the TPM does not keep what it was given", reason="tpm-answer")
    _clear(tpm, places, floor)
    return floor


def _look(tpm: Tpm, index: int) -> Place:
    public = tpm.public(index)
    if public is None:
        return Place(index, "free")
    state = public.attributes & (WRITTEN | WRITELOCKED)
    if public.attributes != ATTRIBUTES | state or public.policy or public.size != CONTENT.size:
        return Place(index, "taken")
    if state != WRITTEN | WRITELOCKED:
        return Place(index, "begun")
    try:
        magic, floor = CONTENT.unpack(tpm.read(index, CONTENT.size))
    except TpmError as error:
        if error.reason != "tpm-auth":
            raise
        return Place(index, "taken")
    return Place(index, "kept", floor) if magic == MAGIC and floor <= HIGHEST else Place(index, "taken")


def _highest(places: Sequence[Place]) -> int | None:
    return max((place.floor for place in places if place.state == "kept"), default=None)


def _add(tpm: Tpm, places: Sequence[Place], before: int | None, floor: int) -> None:
    """Into another place than the one with the floor before."""
    holder = next((one for one in places if one.state == "kept" and one.floor == before), None)
    usable = [one for one in places if one is not holder and one.state != "taken"]
    if not usable:
        hint = "tpm2_nvreadpublic tells of them; clearing the TPM in the firmware's menu removes them"
        names = " and ".join(f"{index:#x}" for index in PLACES)
        raise TpmError(f"somebody else uses {names} in the TPM", reason="tpm-taken", hint=hint)
    place = usable[0]
    if place.state == "kept":
        tpm.undefine(place.handle)
    if place.state != "begun":
        tpm.define(place.handle, ATTRIBUTES, CONTENT.size)
    tpm.write(place.handle, CONTENT.pack(MAGIC, floor))
    tpm.lock(place.handle)


def _clear(tpm: Tpm, places: Sequence[Place], floor: int) -> None:
    """Remove what a higher floor has made needless. That may fail: it is tried again the next time."""
    for place in places:
        if place.state == "begun" or (place.state == "kept" and place.floor < floor):
            with suppress(TpmError):
                tpm.undefine(place.handle)


def _tpm(root: Path) -> Tpm:
    """Open it, and give up all else. Raises TpmError `tpm-missing`, `tpm-io`."""
    try:
        descriptor = _open(root / DEVICE)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise TpmError("there is no TPM 2.0", reason="tpm-missing") from error
    except OSError as error:
        raise TpmError(f"/{DEVICE} cannot be opened: {error.strerror}", reason="tpm-io", retryable=True) from error
    try:
        _confine(descriptor)
    except OSError as error:
        raise TpmError(f"no process can be confined: {error.strerror}", reason="tpm-io") from error
    return Tpm(descriptor)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)


def _confine(descriptor: int) -> None:
    parent = os.getppid()
    keep_only((descriptor,))
    if os.geteuid() == 0:
        entry = pwd.getpwnam(ACCOUNT)
        become((entry.pw_uid, entry.pw_gid), None, parent)


def _say(**values: object) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
