"""Read files out of a Debian binary package (deb(5): an `ar` archive that holds `data.tar.*`), without dpkg."""

from __future__ import annotations

import io
import lzma
import tarfile
from collections.abc import Iterable
from pathlib import Path

from common.errors import FormatError

_MAX_FILE = 64 << 20


class DebError(FormatError):
    """Not a Debian package, or one without the wanted files."""


def read_files(package: Path, wanted: Iterable[str]) -> dict[str, bytes]:
    """The contents of regular files in the package, by path without a leading slash. Raises DebError."""
    paths = list(wanted)
    name, data = _data_member(package.read_bytes(), package)
    found: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:*") as archive:
            for member in archive:
                path = member.name.removeprefix("./")
                if path not in paths or not member.isreg():
                    continue
                if member.size > _MAX_FILE:
                    raise DebError(f"{package.name}: {path} is too large", "deb-size")
                content = archive.extractfile(member)
                found[path] = content.read() if content is not None else b""
    except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
        raise DebError(f"{package.name}: {name} cannot be read: {error}", "deb-damaged") from error
    missing = [path for path in paths if path not in found]
    if missing:
        raise DebError(f"{package.name} does not hold {', '.join(missing)}", "deb-missing-file")
    return found


def _data_member(raw: bytes, package: Path) -> tuple[str, bytes]:
    if raw[:8] != b"!<arch>\n":
        raise DebError(f"{package.name} is no Debian package", "deb-magic")
    at = 8
    while at + 60 <= len(raw):
        header = raw[at : at + 60]
        name = header[:16].decode("ascii", "replace").rstrip().rstrip("/")
        digits = header[48:58].strip()
        if header[58:] != b"`\n" or not digits.isdigit():
            raise DebError(f"{package.name}: damaged archive at byte {at}", "deb-damaged")
        size = int(digits)
        if name.startswith("data.tar"):
            if at + 60 + size > len(raw):
                raise DebError(f"{package.name}: {name} is cut short", "deb-damaged")
            return name, raw[at + 60 : at + 60 + size]
        at += 60 + size + size % 2
    raise DebError(f"{package.name} has no data archive", "deb-damaged")
