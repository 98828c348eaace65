"""`mixos-firmware look | add NAME`: the additions to Secure Boot's databases that the image brings.

`look` changes nothing, and says of each whether the database holds it, and else what speaks against it: `{"additions":
[{"name": …, "variable": …, "digest": …, "there": …, "against": … or null}]}`, a line of JSON. `add` has firmware take
one, when nothing speaks against it, and says `{"added": true}`; false: it is there. Both end with status 0, or say
`{"error": …}` and end with its exit code. Without Secure Boot there is nothing to add.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common.efi import additions
from common.efi.additions import Addition
from common.errors import DiskError, MixosError, NotFoundError, RefusedError, UsageError
from common.streams import open_missing
from daemon.firmware import judge, variables
from daemon.firmware.judge import Program
from daemon.linux.become import LINUX_IMMUTABLE, keep_capabilities

USAGE = "usage: mixos-firmware look | add NAME"


def _confine(root: Path, *, write: bool) -> None:
    """Before anything is read that others can write. Raises OSError."""
    if write:
        variables.unlock(root)
    keep_capabilities({LINUX_IMMUTABLE} if write else set())


def main(argv: Sequence[str], root: Path = Path("/"), confine: Callable[..., None] = _confine) -> int:
    """See the module; returns the exit code."""
    open_missing()
    try:
        match argv:
            case ["look"]:
                confine(root, write=False)
                _say(additions=_look(root))
            case ["add", name]:
                confine(root, write=True)
                _say(added=_add(root, name))
            case _:
                raise UsageError(USAGE, reason="usage")
    except OSError as error:
        where = error.filename or "the disk, or a variable of the firmware"
        return _failed(DiskError(f"{where}: {error.strerror}", reason="firmware-io", retryable=True))
    except MixosError as error:
        return _failed(error)
    return 0


def _brought(root: Path) -> tuple[Addition, ...]:
    """Those of the image, where Secure Boot is on."""
    return additions.read(root / additions.FOLDER.relative_to("/")) if variables.enforced(root) else ()


def _look(root: Path) -> list[dict[str, Any]]:
    databases, brought = variables.databases(root), _brought(root)
    missing = [one for one in brought if one.missing(databases)]
    started = _started(root, missing)
    return [
        {
            "name": one.name,
            "variable": one.variable,
            "digest": one.digest,
            "there": one not in missing,
            "against": judge.against(one, databases, started) if one in missing else None,
        }
        for one in brought
    ]


def _started(root: Path, missing: Sequence[Addition]) -> list[Program]:
    """All that this machine starts, where that matters: it is much to read."""
    return judge.programs(root) if any(one.variable == "dbx" for one in missing) else []


def _add(root: Path, name: str) -> bool:
    one = next((one for one in _brought(root) if one.name == name), None)
    if one is None:
        raise NotFoundError(f"the image brings no {name[:80]!r} for this machine", reason="firmware-none")
    databases = variables.databases(root)
    if not one.missing(databases):
        return False
    with judge.nothing_new(root) if one.variable == "dbx" else nullcontext():
        why = judge.against(one, databases, _started(root, [one]))
        if why is not None:
            raise RefusedError(f"{one.name} is not added: {why}", reason="firmware-held")
        variables.add(root, one)
    return True


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _failed(error: MixosError) -> int:
    _say(error=error.as_json())
    return error.exit_code
