"""Which kernel source a build uses. A description only: `buildsys` fetches, this module never does.

`kernel.source` in mixos.toml is one of
    auto     the pin when it can be had, else the locked fallback, else the first of `FALLBACKS` that can
    pinned   the pin, or an error
    PATH     a tarball, a linux-source .deb or a source tree of Linux 6.1 or newer
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from buildsys.run import CommandError, run
from common.errors import ConfigError
from kernel.version import Version

PINNED = Version(6, 6, 8)  # linux-6.6.8.tar.xz of sources.lock
OLDEST = Version(6, 1, 0)  # Landlock ABI, dm-init with PARTUUID, and the oldest line the distribution still maintains

_FIELD = re.compile(r"^(VERSION|PATCHLEVEL|SUBLEVEL)[ \t]*=[ \t]*([0-9]{1,6})[ \t]*$", re.MULTILINE)
UNPACK = Path(__file__).with_name("unpack.sh")  # reads every form that a source comes in
_READ_SECONDS = 300  # an archive whose Makefile is its last file is read whole


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
    hint = "expected auto, pinned, or the path of a tarball, a linux-source .deb or a source tree"
    try:
        path = (base / Path(value).expanduser()).resolve()
        there = bool(value) and path.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, an unknown ~user, a zero byte
        raise ConfigError(f"kernel source '{value}': {error}", reason="kernel-source", hint=hint) from error
    if not there:
        raise ConfigError(f"kernel source '{value}': {path} does not exist", reason="kernel-source", hint=hint)
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
        found = run(["sh", UNPACK, source, "-", "makefile"], split=True, timeout=_READ_SECONDS)
        return require_supported(parse_makefile(found.text, where), where)
    except CommandError as error:
        raise ConfigError(
            f"{source}: cannot be read as a kernel source ({error.message.splitlines()[-1]})",
            reason="kernel-source",
            hint="expected a tarball, a linux-source .deb or a source tree",
        ) from error
