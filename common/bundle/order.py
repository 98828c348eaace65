"""What is to be installed, as the process that has verified a bundle tells it to the one that writes the disk.

It is a part of the manifest, and the one plan that fits what runs; JSON, and made again of that text with nothing taken
for granted. Standard library only: who writes the disk loads no more than it needs.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from common.bundle.windows import MAX_PLAN, MAX_SIZE, Target
from common.efi.entries import BOOT_FILES
from common.errors import BundleError

MAX_BYTES = 4 << 20
MAX_BOOT_FILE = 64 << 20  # bytes
When = Literal["before-stage", "before-apply"]
WHENS: tuple[When, ...] = get_args(When)
MAX_HOOKS = 8
MAX_HOOK = 256 << 10  # bytes of one
MAX_HOOK_SECONDS = 120  # of all those together that run at the same time
_MAX_NUMBER = 1 << 53
_VERSION = re.compile(r"[0-9A-Za-z][0-9A-Za-z.~^-]{0,62}")
_KERNEL = re.compile(r"[0-9A-Za-z][0-9A-Za-z._+-]{0,63}")


@dataclass(frozen=True)
class Piece:
    """Bytes of the payload: offset, size, and SHA-256."""

    offset: int
    size: int
    sha256: bytes


@dataclass(frozen=True)
class File:
    """A file to be made: its SHA-256, its windows, and the plans that make it, the cheapest first; the last one begins
    with nothing, so that it makes what the others cannot."""

    sha256: bytes
    target: Target
    plans: tuple[Piece, ...]

    @property
    def size(self) -> int:
        """In bytes."""
        return self.target.size


@dataclass(frozen=True)
class Hook:
    """A program that may refuse the release: when it is asked, after how many seconds it has failed, and its bytes."""

    when: When
    seconds: int
    piece: Piece


@dataclass(frozen=True)
class Order:
    """payload: where the bundle's payload begins, from which the offsets in plans count; source: root hash of what runs
    if there are plans that begin with it; transfer: bytes that are fetched; created: seconds since 1970; files: of the
    ESP, by name (`BOOT_FILES`); key: of a payload that is encrypted, secret: it is never kept."""

    version: str
    sequence: int
    kernel: str
    created: int
    payload: int
    transfer: int
    source: bytes | None
    root_hash: bytes
    salt: bytes
    root: File
    uki: File
    files: dict[str, File]
    hooks: tuple[Hook, ...] = ()
    key: bytes | None = field(default=None, repr=False)

    def dump(self) -> str:
        """Its JSON text."""
        return json.dumps(asdict(self), default=bytes.hex, sort_keys=True, separators=(",", ":"))


def parse(text: str) -> Order:
    """The inverse of `dump`. Raises BundleError `order`."""
    try:
        if len(text) > MAX_BYTES:
            raise ValueError("too long")
        found: Any = json.loads(text)
        order = Order(
            version=_matching(_VERSION, found["version"]),
            sequence=_number(found["sequence"]),
            kernel=_matching(_KERNEL, found["kernel"]),
            created=_number(found["created"]),
            payload=_number(found["payload"]),
            transfer=_number(found["transfer"]),
            source=None if found["source"] is None else _hash(found["source"]),
            root_hash=_hash(found["root_hash"]),
            salt=_bytes(found["salt"], 256),
            root=_file(found["root"]),
            uki=_file(found["uki"]),
            files={name: _file(found["files"][name], MAX_BOOT_FILE) for name in BOOT_FILES if name in found["files"]},
            hooks=tuple(map(_hook, found["hooks"])),
            key=None if found.get("key") is None else _hash(found["key"]),
        )
        if len(order.hooks) > MAX_HOOKS:
            raise ValueError("hooks")
        return order
    except (ValueError, TypeError, KeyError, RecursionError, BundleError) as error:
        raise BundleError("what is to be installed is not told as it must be", "order") from error


def _file(found: Any, most: int = MAX_SIZE) -> File:
    target = Target(_number(found["target"]["size"], most), tuple(map(_hash, found["target"]["windows"])))
    target.check()
    plans = tuple(_piece(one, MAX_PLAN) for one in found["plans"])
    if not 0 < len(plans) <= 2:
        raise ValueError("plans")
    return File(_hash(found["sha256"]), target, plans)


def _hook(found: Any) -> Hook:
    seconds = _number(found["seconds"], MAX_HOOK_SECONDS)
    if found["when"] not in WHENS or not seconds:
        raise ValueError("a hook")
    return Hook(found["when"], seconds, _piece(found["piece"], MAX_HOOK))


def _piece(found: Any, most: int) -> Piece:
    return Piece(_number(found["offset"]), _number(found["size"], most), _hash(found["sha256"]))


def _number(value: Any, most: int = _MAX_NUMBER) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("a number")
    return value


def _bytes(value: str, most: int) -> bytes:
    data = bytes.fromhex(value)
    if len(data) > most or data.hex() != value:
        raise ValueError("bytes")
    return data


def _hash(value: str) -> bytes:
    data = _bytes(value, 32)
    if len(data) != 32:
        raise ValueError("a hash")
    return data


def _matching(pattern: re.Pattern[str], value: str) -> str:
    if not pattern.fullmatch(value):
        raise ValueError("a word")
    return value
