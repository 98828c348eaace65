"""The project's kernel patches: `patches/series.toml` says which kernel versions get which, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from common import toml
from common.errors import ConfigError
from kernel.version import Range, Version

SERIES = "series.toml"


@dataclass(frozen=True)
class Patch:
    """One patch file, for `patch -p1`."""

    path: Path
    versions: Range
    reason: str


def read_series(folder: Path) -> list[Patch]:
    """Read the series of a folder. Raises ConfigError (patch-series): a wrong entry, a missing or an unlisted file."""
    where = f"{folder.name}/{SERIES}"
    text = (folder / SERIES).read_text(encoding="utf-8-sig")
    try:
        document = toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise ConfigError(toml.explained(error, where, text), reason="patch-series") from error
    patches: list[Patch] = []
    for number, table in enumerate(document.get("patch", []), start=1):
        values = [table.get(key) for key in ("file", "versions", "reason")]
        if set(table) != {"file", "versions", "reason"} or not all(
            isinstance(value, str) and value for value in values
        ):
            raise ConfigError(
                f"{where}: patch {number} needs file, versions and reason, as text", reason="patch-series"
            )
        patches.append(Patch(folder / table["file"], Range.parse(table["versions"]), table["reason"]))
    listed, there = {patch.path.name for patch in patches}, {path.name for path in folder.glob("*.patch")}
    if set(document) - {"patch"} or listed != there:
        odd = sorted((listed ^ there) | (set(document) - {"patch"}))
        raise ConfigError(f"{where}: the series and the files differ in {', '.join(odd)}", reason="patch-series")
    return patches


def stage(patches: Sequence[Patch], version: Version, out: Path) -> list[Patch]:
    """Copy what this version gets into the new folder `out`, numbered in their order; returns the patches chosen."""
    out.mkdir()
    chosen = [patch for patch in patches if version in patch.versions]
    for number, patch in enumerate(chosen, start=1):
        (out / f"{number:02}-{patch.path.name}").write_bytes(patch.path.read_bytes())
    return chosen
