"""Applying `mixos-preseed.toml`: all of it or nothing.

Everything is read, checked, rendered and written to a staging folder first; only then are files renamed to their
places, and at last the record is written. A mistake or a full disk before the renames changes nothing; a power cut
between two renames leaves no record, so the next boot applies the same content again.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import MixosError, SettingsError
from common.files import write_atomically
from common.settings.model import MAX_BYTES, Settings, from_mapping, parse
from common.settings.render import File, render
from common.streams import open_missing
from daemon.core.change.files import Trees, clean, do, stage, staging, undo

DEFAULTS = "usr/lib/mixos/settings.json"
RESULT = "run/mixos/preseed.json"


def main(argv: Sequence[str]) -> int:
    """`mixos-preseed FILE STATE RECORD`: apply FILE, then write RECORD to STATE/preseed.applied. Returns the exit code.

    The result is left in /run/mixos/preseed.json for `mixctl status`.
    """
    open_missing()
    if len(argv) != 3:
        sys.stderr.write("usage: mixos-preseed FILE STATE RECORD\n")
        return 2
    return apply(Path(argv[0]), Path(argv[1]), argv[2], Path("/"))


def apply(source: Path, state: Path, record: str, root: Path) -> int:
    """Apply `source` to the tree at `root`; 0, or the exit code of what was wrong (already reported)."""
    try:
        changed = install(render(load(source, root)), root)
    except (MixosError, OSError) as error:
        reason = error.reason if isinstance(error, MixosError) else "preseed-io"
        message = error.message if isinstance(error, MixosError) else f"{source}: {error}"
        sys.stderr.write(f"mixos: {source.name} was IGNORED, nothing of it was applied:\n")
        sys.stderr.write("".join(f"mixos:   {line}\n" for line in message.splitlines()))
        _result(root, {"state": "rejected", "reason": reason, "error": message})
        return error.exit_code if isinstance(error, MixosError) else 1
    write_atomically(state / "preseed.applied", f"{record}\n".encode(), 0o600)
    _result(root, {"state": "applied", "changed": changed})
    sys.stdout.write(f"mixos: {source.name} was applied ({len(changed)} files changed)\n")
    return 0


def load(source: Path, root: Path) -> Settings:
    """The image's settings with those of `source` over them. Raises SettingsError."""
    try:
        defaults = json.loads((root / DEFAULTS).read_bytes())
    except ValueError as error:
        raise SettingsError(f"/{DEFAULTS}: {error}", reason="settings-syntax") from error
    with source.open("rb") as stream:
        data = stream.read(MAX_BYTES + 1)
    return parse(data, source.name, from_mapping(defaults, f"/{DEFAULTS}", Settings()))


def install(files: Mapping[str, File], root: Path) -> list[str]:
    """Put the files that differ in place, all or none; returns their paths. Raises OSError."""
    trees = Trees(root / "etc", root / "var/lib")
    contents = {path: (file.data, file.mode) for path, file in files.items()}
    for folder in staging(trees, "preseed"):
        shutil.rmtree(folder, ignore_errors=True)  # of one that a power cut ended
    renames = stage(trees, contents, "preseed")
    try:
        do(renames)
    except OSError:
        undo(renames)
        raise
    finally:
        clean(renames)
    return [change.name for change in renames.changes]


def _result(root: Path, result: Mapping[str, object]) -> None:
    target = root / RESULT
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result) + "\n", encoding="utf-8")
