"""What init runs before anything reads settings, when the release is not the one that the data were left by.

The result is left in /run/mixos/release.json for the part `update`, which says it, and does not call a version good
whose migrations failed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from common.errors import MixosError
from common.streams import open_missing
from daemon.core.change.files import Trees
from daemon.core.release.switch import Device, Release, take_over
from daemon.migrations import migrations

RESULT = "run/mixos/release.json"


def main(argv: Sequence[str]) -> int:
    """`mixos-handover STATE KEY VERSION IMAGE`: give the data below /etc and /var/lib the shape of this release, of
    which IMAGE is the root with nothing mounted over it. Returns the exit code."""
    open_missing()
    if len(argv) != 4:
        sys.stderr.write("usage: mixos-handover STATE KEY VERSION IMAGE\n")
        return 2
    return apply(Path(argv[0]), argv[1], argv[2], Path(argv[3]), Path("/"))


def apply(state: Path, key: str, version: str, image: Path, root: Path) -> int:
    """Do it for the tree at `root`; 0, or the exit code of what was wrong (already reported)."""
    device = Device(state / "ledger", Trees(root / "etc", root / "var/lib"))
    try:
        _finish_changes(root)
        outcome = take_over(device, Release(key, version, image, migrations()))
    except (MixosError, OSError) as error:
        reason = error.reason if isinstance(error, MixosError) else "release-io"
        message = error.message if isinstance(error, MixosError) else str(error)
        sys.stderr.write(f"mixos: settings and state stay as the version before left them: {message}\n")
        _result(root, {"how": "failed", "reason": reason, "error": message[:1000]})
        return error.exit_code if isinstance(error, MixosError) else 1
    _result(root, asdict(outcome))
    said = {"forward": "taken over from", "back": "as they were before"}.get(outcome.how)
    if said and outcome.changed:
        sys.stdout.write(f"mixos: settings and state {said} {outcome.version} ({len(outcome.changed)} files changed)\n")
    for name in outcome.conflicts:
        sys.stdout.write(f"mixos: /{name} could not be merged (mixctl update conflicts)\n")
    return 0


def _finish_changes(root: Path) -> None:
    """What the daemon of the other release was about to write comes first."""
    state = root / "var/lib/mixos"
    if any((state / "changes").glob("*.json")):
        from daemon.core.part import Context  # seldom, and it takes as long as all else together

        Context(run=root / "run/mixos", state=state, etc=root / "etc/mixos").changes.open()


def _result(root: Path, result: dict[str, Any]) -> None:
    target = root / RESULT
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result) + "\n", encoding="utf-8")
