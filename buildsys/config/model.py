"""mixos.toml: the image that the user wants."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from buildsys.config.values import WebAddress
from common.tomlfile import Strict
from common.values import worded
from image.layout import LIMITS

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
MIN_ALIGN = 1 << 20


def parse_size(value: object) -> int:
    """'256M' or a number of bytes → bytes."""
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = re.fullmatch(r"(\d{1,12})([KMG]?)", value) if isinstance(value, str) else None
    if match is None:
        raise ValueError("expected a size such as '256M' or a number of bytes")
    return int(match[1]) * _UNITS[match[2]]


def _within(name: str) -> AfterValidator:
    """Sizes that the layout of a disk can have."""
    least, most = LIMITS[name]

    def check(value: int) -> int:
        if value % MIN_ALIGN or not least <= value >> 20 <= most:
            raise ValueError(f"expected a multiple of 1M, from {least}M to {most}M")
        return value

    return AfterValidator(check)


Size = Annotated[int, BeforeValidator(parse_size)]
Version = Annotated[
    str,
    worded(r"[0-9]+\.[0-9]+\.[0-9]+([.-][0-9A-Za-z.-]{1,24})?", "a version is expected, such as 1.2.3 or 1.2.3-rc.1"),
]


class Image(Strict):
    """What the image is called, and the only time it knows."""

    name: Annotated[str, worded("[a-z][a-z0-9-]{0,30}", "up to 31 of a-z, 0-9 and - are expected, a letter first")] = (
        "mixos"
    )
    version: Version
    # 32 bits, as the time stamps of squashfs
    epoch: Annotated[int, Field(gt=0, lt=1 << 32, description="SOURCE_DATE_EPOCH, seconds since 1970")]
    sequence: Annotated[int, Field(ge=0, lt=1 << 53)] = (
        0  # grows from release to release, whatever the version is called
    )
    floor: Annotated[int, Field(ge=0, lt=1 << 53)] = 0  # below which a device takes nothing once this was called good
    variant: Annotated[str, worded(r"[a-z0-9][a-z0-9_-]{0,30}", "a word in lower case is expected")] = "default"
    profile: Literal["release", "debug"] = "release"
    rescue: Literal["menu", "shell", "none"] = "menu"  # what who is at the console gets when no version starts
    filesystem: Literal["squashfs", "erofs"] = "squashfs"
    max_root: Size = 64 << 20  # budget for the compressed root file system


class Machine(Strict):
    """What the image is for."""

    arch: Literal["x86_64"] = "x86_64"


class Kernel(Strict):
    """Which kernel. source: 'auto', 'pinned', or the path of a tree or tarball. cmdline: words added at the end."""

    source: str = "auto"
    cmdline: tuple[
        Annotated[str, worded("[!#-~]{1,200}", "a word of printable ASCII is expected, without blanks and quotes")], ...
    ] = ()


class Packages(Strict):
    """Names of recipes whose packages go into the image; what they depend on comes with them."""

    install: tuple[str, ...]


Service = Literal["sshd", "network", "console", "mixosd", "syslogd"]


class Services(Strict):
    """What init starts."""

    enable: tuple[Service, ...] = ("sshd", "network", "console", "mixosd", "syslogd")


class Partitions(Strict):
    """Sizes. A root slot is written twice (A and B); data grows to fill the disk at first boot."""

    esp: Annotated[Size, _within("esp")] = 260 << 20
    root: Annotated[Size, _within("slot")] = 256 << 20
    data: Annotated[Size, _within("data")] = 64 << 20


class Fetch(Strict):
    """mirrors: base URLs under which files are found by their SHA-256, asked before upstream."""

    mirrors: tuple[WebAddress, ...] = ()


class Updates(Strict):
    """keys: the folder of the project with what is public of the keys that sign releases."""

    keys: Annotated[str, worded(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "the name of a folder is expected")] = "keys"


class MixosToml(Strict):
    """The whole file. `settings` has the schema of a first-boot preseed and is checked by the same code."""

    image: Image
    machine: Machine = Machine()
    kernel: Kernel = Kernel()
    packages: Packages
    services: Services = Services()
    partitions: Partitions = Partitions()
    fetch: Fetch = Fetch()
    updates: Updates = Updates()
    settings: dict[str, Any] = Field(default_factory=dict)
