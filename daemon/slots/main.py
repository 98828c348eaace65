"""`mixos-slots count OLD NEW | stage ORDER | seal ORDER | renew | examine | repair [ORDER] | reset HOW`.

ORDER is the number of a descriptor with what is to be installed (`common.bundle.order`). `stage`, and `repair` with an
order, ask for the bundle on standard input, which is a socket (`common.bundle.ranges`). What it says is JSON, a line
each: `{"step": …, "done": …, "of": …, "fetched": …}` while it works; in the end `{"slot": …}`, `{"written": […]}`, or
`{"report": …, "mended": […]}` (`daemon.slots.examine.Report`) and status 0, or `{"error": …}` with its exit code. HOW
is `erase`, `overwrite` or `cancel`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.bundle import order as orders
from common.bundle.ranges import Ranges
from common.errors import DiskError, MixosError, UsageError
from common.streams import open_missing
from daemon.parts.update.boot import Disk
from daemon.slots.bootfiles import renew
from daemon.slots.disk import count, reset
from daemon.slots.examine import Report, examine
from daemon.slots.repair import repair, repair_by
from daemon.slots.seal import seal
from daemon.slots.stage import Stage

USAGE = (
    "usage: mixos-slots count OLD NEW | stage ORDER | seal ORDER | renew | examine | repair [ORDER] | "
    "reset erase|overwrite|cancel"
)


def main(argv: Sequence[str], root: Path = Path("/")) -> int:
    """See the module; returns the exit code."""
    open_missing()
    try:
        match argv:
            case ["count", old, new]:
                count(Disk.find(root), old, new)
            case ["stage", number] if number.isdigit():
                _say(slot=Stage(root, _order(int(number)), _step).run(Ranges(0, 0)))
            case ["seal", number] if number.isdigit():
                _say(slot=seal(root, _order(int(number))))
            case ["renew"]:
                _say(written=renew(root))
            case ["examine"]:
                _report(examine(root, _step), ())
            case ["repair"]:
                _report(*repair(root, _step))
            case ["repair", number] if number.isdigit():
                _report(*repair_by(root, _order(int(number)), Ranges(0, 0), _step))
            case ["reset", ("erase" | "overwrite" | "cancel") as how]:
                reset(Disk.find(root), None if how == "cancel" else how)
            case _:
                raise UsageError(USAGE, reason="usage")
    except OSError as error:
        return _failed(
            DiskError(f"{error.filename or 'the disk'}: {error.strerror}", reason="slots-io", retryable=True)
        )
    except MixosError as error:
        return _failed(error)
    return 0


def _order(descriptor: int) -> orders.Order:
    with os.fdopen(descriptor, "rb") as stream:
        return orders.parse(stream.read(orders.MAX_BYTES + 1).decode("ascii", "replace"))


def _step(step: str, done: int, of: int, fetched: int) -> None:
    _say(step=step, done=done, of=of, fetched=fetched)


def _report(report: Report, mended: Sequence[str]) -> None:
    _say(report=report.as_json(), mended=list(mended))


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _failed(error: MixosError) -> int:
    _say(error=error.as_json())
    return error.exit_code
