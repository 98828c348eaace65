"""`mixos-release verify FACTS`: whether this device takes a release, and what is to be done then. `mixos-release check
FACTS`: what a channel has for it.

A process of its own, with no account but its own and no network: it reads what strangers have written, and takes more
memory than the rest of an update. FACTS is the number of a descriptor with what runs; standard input is a socket where
ranges of the bundle, or files of the channel, come from (`common.bundle.ranges`). It says one line of JSON and ends
with status 0: `{"order": …, "signers": …, "expires": …}`, before it `{"hook": SHA-256, "data": base64}` for each hook
of the bundle that the member `hooks` of FACTS does not have, if there is one; or what `common.trust.channel.Checked`
has; or `{"error": …}` and its exit code.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from common.bundle import container, sealing
from common.bundle.order import Order
from common.bundle.ranges import Files, Ranges
from common.errors import BundleError, MixosError, TrustError, UsageError
from common.streams import open_missing
from common.trust import ANCHORS
from common.trust.openpgp import utc
from common.trust.release import Anchors, Running, verify
from daemon.linux.become import become, keep_only, stay_alone
from daemon.unsealer import Unsealer

ACCOUNT = "update"
STATE = Path("var/lib/mixos/update/trust")  # what was trusted before; belongs to the account
USAGE = "usage: mixos-release verify FACTS | check FACTS"
_MAX_FACTS = 64 << 10


def main(argv: Sequence[str], root: Path = Path("/")) -> int:
    """See the module; returns the exit code."""
    open_missing()
    try:
        match argv:
            case ["verify" | "check" as what, number] if number.isdigit():
                facts = _facts(int(number))
                unsealer = Unsealer(root / STATE.parent / "key", ACCOUNT) if what == "verify" else None
                _confine(root / STATE, (unsealer.descriptor,) if unsealer else ())
                _say(**(_verified(facts, root, unsealer) if unsealer else _checked(facts, root)))
            case _:
                raise UsageError(USAGE, reason="usage")
    except OSError as error:
        message = f"{error.filename or 'where the bundle comes from'}: {error.strerror}"
        return _failed(TrustError(message, reason="release-state", retryable=True))
    except MixosError as error:
        return _failed(error)
    return 0


def _running(facts: dict[str, Any]) -> Running:
    return Running(facts["machine"], facts["variant"], facts["sequence"], facts["floor"])


def now(facts: dict[str, Any]) -> datetime:
    """The time by which is judged: never one before this image was made, whoever has set the clock back (NTP is not
    authenticated) so that keys and metadata hold again which have expired since."""
    return max(datetime.now(UTC), utc(facts["epoch"]))


def _anchors(root: Path) -> Anchors:
    return Anchors.load(root / ANCHORS.relative_to("/"))


def _checked(facts: dict[str, Any], root: Path) -> dict[str, Any]:
    from common.trust import channel  # not needed for a bundle

    device = channel.Device(_running(facts), facts["root-hash"], facts["identity"], facts["blocked"])
    files = channel.of_files(Files(0, 0).get)
    return channel.check(files, _anchors(root), Path(), device, now(facts)).as_json()


def _verified(facts: dict[str, Any], root: Path, unsealer: Unsealer) -> dict[str, Any]:
    ranges = Ranges(0, 0)
    front, payload = container.read(_reader(ranges))
    found = verify(front, _anchors(root), Path(), _running(facts), now(facts))
    order = found.manifest.order(payload, facts["root-hash"])
    encryption = found.manifest.encryption
    if encryption is not None:
        order = replace(order, key=unsealer.unseal(front.recipients))
        if hashlib.sha256(order.key or b"").hexdigest() != encryption.key_sha256:
            raise TrustError("the release is encrypted with another key than it says", reason="release-sealed")
    if "hooks" in facts:
        _hooks(order, facts["hooks"], ranges)
    return {"order": order.dump(), "signers": sorted(found.signers), "expires": found.expires.timestamp()}


def _hooks(order: Order, there: Sequence[str], ranges: Ranges) -> None:
    read = sealing.payload(order, ranges.read)
    for piece in {hook.piece.sha256: hook.piece for hook in order.hooks}.values():
        if piece.sha256.hex() in there:
            continue
        data = read(piece.offset, piece.size)
        if hashlib.sha256(data).digest() != piece.sha256:
            raise BundleError("a hook is not the one that the manifest names", "bundle-damaged")
        _say(hook=piece.sha256.hex(), data=base64.b64encode(data).decode())


def _reader(ranges: Ranges) -> Callable[[int], bytes]:
    """The bundle from its begin on."""
    at = 0

    def take(count: int) -> bytes:
        nonlocal at
        data = ranges.read(at, count)
        at += len(data)
        return data

    return take


def _facts(descriptor: int) -> dict[str, Any]:
    with os.fdopen(descriptor, "rb") as stream:
        found: dict[str, Any] = json.loads(stream.read(_MAX_FACTS))
    return found


def _confine(folder: Path, descriptors: tuple[int, ...]) -> None:
    """The folder of what is kept is the current one from now on: the account cannot go there by itself."""
    parent = os.getppid()
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.fchdir(descriptor)
    keep_only(descriptors)
    stay_alone()
    if os.geteuid() == 0:
        entry = pwd.getpwnam(ACCOUNT)
        become((entry.pw_uid, entry.pw_gid), None, parent)


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _failed(error: MixosError) -> int:
    _say(error=error.as_json())
    return error.exit_code
