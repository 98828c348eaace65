"""Which kernel source a build uses. A description only: `buildsys` fetches, this module never does.

`kernel.source` in mixos.toml is one of
    auto     the pin when it can be had, else the locked fallback, else the first of `FALLBACKS` that can
    pinned   the pin, or an error
    PATH     a tarball, a linux-source .deb or a source tree of Linux 6.1 or newer
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from common.errors import ConfigError
from kernel.version import Version

PINNED = Version(6, 6, 8)  # linux-6.6.8.tar.xz of sources.lock
OLDEST = Version(6, 1, 0)  # Landlock ABI, dm-init with PARTUUID, and the oldest line the distribution still maintains

_FIELD = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL)[ \t]*=[ \t]*([0-9]+)[ \t]*$", re.MULTILINE)
_MAKEFILE = re.compile(r"(?:\./)?[^/]+/Makefile")
_TARBALL = re.compile(r"(?:\./)?usr/src/linux-source-[0-9.]+\.tar\.xz")
_MAKEFILE_LIMIT = 1 << 20  # bytes; that of 6.12 has 70 KiB
_AR_MAGIC = b"!<arch>\n"
_AR_HEADER = 60  # bytes of a member header, ar(5)


# The distribution's source packages that may stand in for the pin, by preference. A line belongs here when every boot
# suite passes with it; 6.1 does not start from USB disks and was taken out.
FALLBACKS = ("linux-source-6.12",)


@dataclass(frozen=True)
class Selection:
    """What `kernel.source` says. path is set for kind "path" only."""

    kind: Literal["auto", "pinned", "path"]
    path: Path | None = None

    @property
    def may_fall_back(self) -> bool:
        """Whether a source of the distribution may stand in for the pin."""
        return self.kind == "auto"


def parse_selection(value: str, base: Path) -> Selection:
    """Read `kernel.source`; a relative path counts from `base`. Raises ConfigError (kernel-source): no such path."""
    if value == "auto":
        return Selection("auto")
    if value == "pinned":
        return Selection("pinned")
    path = (base / Path(value).expanduser()).resolve()
    if not value or not path.exists():
        raise ConfigError(
            f"kernel source '{value}': {path} does not exist",
            reason="kernel-source",
            hint="expected auto, pinned, or the path of a tarball, a linux-source .deb or a source tree",
        )
    return Selection("path", path)


def parse_makefile(text: str, where: str) -> Version:
    """The version in a kernel's top Makefile. Raises ConfigError (kernel-source)."""
    fields = {name: int(value) for name, value in reversed(_FIELD.findall(text))}
    if set(fields) != {"VERSION", "PATCHLEVEL", "SUBLEVEL"}:
        raise ConfigError(
            f"{where}: this Makefile is not that of a kernel (no VERSION, PATCHLEVEL and SUBLEVEL)",
            reason="kernel-source",
        )
    return Version(fields["VERSION"], fields["PATCHLEVEL"], fields["SUBLEVEL"])


def require_supported(version: Version, where: str) -> Version:
    """The version itself. Raises ConfigError (kernel-too-old) below 6.1."""
    if version < OLDEST:
        raise ConfigError(
            f"{where}: Linux {version} is too old; {OLDEST.major}.{OLDEST.minor} or newer is needed",
            reason="kernel-too-old",
            hint="give a newer source with --kernel-source, or leave kernel.source at 'auto'",
        )
    return version


def source_version(source: Path) -> Version:
    """The version of a tree, tarball or linux-source .deb, read from its Makefile without unpacking the rest.

    Raises ConfigError: kernel-source when it is none of these, kernel-too-old below 6.1.
    """
    where = source.name
    if source.is_dir():
        makefile = source / "Makefile"
        if not makefile.is_file() or not (source / "Kconfig").is_file():
            raise ConfigError(f"{source}: not a kernel source tree (no Makefile or Kconfig)", reason="kernel-source")
        return require_supported(parse_makefile(makefile.read_text(encoding="utf-8", errors="replace"), where), where)
    try:
        with source.open("rb") as file:
            if file.read(len(_AR_MAGIC)) == _AR_MAGIC:
                with _inner_tarball(file, where) as stream:
                    text = _find_makefile(stream, where)
            else:
                file.seek(0)
                text = _find_makefile(file, where)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ConfigError(
            f"{source}: cannot be read as a kernel source ({error})",
            reason="kernel-source",
            hint="expected a tarball, a linux-source .deb or a source tree",
        ) from error
    return require_supported(parse_makefile(text, where), where)


def _find_makefile(stream: IO[bytes], where: str) -> str:
    """The text of TOP/Makefile in a tarball that is read from front to end."""
    with tarfile.open(fileobj=stream, mode="r|*") as archive:
        for member in archive:
            if member.isfile() and _MAKEFILE.fullmatch(member.name):
                inner = archive.extractfile(member)
                if inner is not None and member.size <= _MAKEFILE_LIMIT:
                    return inner.read(_MAKEFILE_LIMIT).decode("utf-8", "replace")
    raise ConfigError(f"{where}: no Makefile is at the top of this tarball", reason="kernel-source")


@contextmanager
def _inner_tarball(file: IO[bytes], where: str) -> Iterator[IO[bytes]]:
    """The kernel tarball inside a .deb, as a stream. `file` stands behind the magic of the ar archive (deb(5))."""
    while header := file.read(_AR_HEADER):
        name, size = header[:16].rstrip(b" /"), header[48:58].strip()
        if len(header) != _AR_HEADER or not size.isdigit():
            break
        if name.startswith(b"data.tar"):
            with tarfile.open(fileobj=file, mode="r|*") as archive:
                for member in archive:
                    inner = archive.extractfile(member) if member.isfile() else None
                    if inner is not None and _TARBALL.fullmatch(member.name):
                        yield inner
                        return
        file.seek(int(size) + int(size) % 2, 1)
    raise ConfigError(f"{where}: this package holds no kernel source under usr/src", reason="kernel-source")
