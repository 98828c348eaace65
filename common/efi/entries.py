"""The unified kernel images on an ESP, and which of them systemd-boot starts next.

A boot counter stands in a file's name, `NAME+LEFT[-DONE].efi`; the loader counts down before each start (systemd,
"Automatic Boot Assessment"). Versions are ordered as it orders them ("Version Format Specification", UAPI.10); which
version an entry is stands in its image, not in its name. Standard library only.

Names are as short as FAT has slots for, so that a rename by firmware happens at once (`common.disk.fatedit`): with its
counter a name has 13 characters at most, two slots; one in capitals, of 8 and 3 characters, has one.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cmp_to_key

FOLDER = "EFI/Linux"
TRIES, GOOD = 3, 4  # starts of a version that is new, and of one that was called good: the name tells which it is
SORT_KEY = "mixos"  # IMAGE_ID of an image's .osrel
RESCUE, RESCUE_SORT_KEY = "RESCUE.EFI", "mixos-rescue"  # the file that is started when no other is left, not counted
BOOT_FILES = {  # what a release brings for the ESP besides its kernel image, and where that lies
    "rescue": (f"{FOLDER}/{RESCUE}",),
    "loader": ("EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"),
    "loader-conf": ("loader/loader.conf",),
}
COMING = "COMING.NEW"  # a file that becomes an entry once it is whole; the loader does not look at it
_NAME = re.compile(
    r"(?P<stem>[^+]*(?:\+(?![0-9]+(?:-[0-9]+)?\.efi$)[^+]*)*?)(?:\+(?P<left>[0-9]+)(?:-(?P<done>[0-9]+))?)?\.efi", re.I
)


@dataclass(frozen=True)
class Entry:
    """A file in `EFI/Linux`. left, done: starts that are left and that were made; None: not counted. sort_key, version:
    IMAGE_ID and IMAGE_VERSION in its `.osrel`. written: its name, where we would write the same counter otherwise."""

    stem: str
    left: int | None = None
    done: int = 0
    sort_key: str = SORT_KEY
    version: str = ""
    written: str = ""

    @property
    def name(self) -> str:
        """The name of the file."""
        if self.written:
            return self.written
        if self.left is None:
            return f"{self.stem}.efi"
        return f"{self.stem}+{self.left}{f'-{self.done}' if self.done else ''}.efi"

    @property
    def bad(self) -> bool:
        """Whether it was started as often as it may be without being called good."""
        return self.left == 0

    @property
    def good(self) -> bool:
        """Whether it was called good once."""
        return self.left is not None and self.left + self.done == GOOD

    def blessed(self) -> Entry:
        """The entry after a start that was good: it is counted from anew, so that one which breaks later falls back."""
        return self.counted(GOOD, 0)

    def renewed(self) -> Entry:
        """The entry with all the starts that it had: as good, or as new, as it was."""
        return self.counted(GOOD if self.good else TRIES, 0)

    def given_up(self) -> Entry:
        """The entry when it is not to be started while there is another one."""
        return self.counted(0, self.done + (self.left or 0))

    def counted(self, left: int, done: int) -> Entry:
        """The entry with another counter."""
        return replace(self, left=left, done=done, written="")


def image_name(root_hash: bytes) -> str:
    """What the file name of an image's entry begins with: 25 bits of its root hash, in base 32 (RFC 4648)."""
    return base64.b32encode(root_hash[:4]).decode()[:5].lower()


def read_name(name: str) -> Entry | None:
    """What the name of a file says, its version is not told; None for what the loader does not look at."""
    found = _NAME.fullmatch(name)
    if found is None or not found["stem"]:
        return None
    left = None if found["left"] is None else int(found["left"])
    entry = Entry(found["stem"], left, int(found["done"] or 0))
    return entry if entry.name.lower() == name.lower() else replace(entry, written=name)  # such as k+03.efi


def in_order(entries: Iterable[Entry]) -> list[Entry]:
    """As the loader sorts them (systemd 262, src/boot/boot.c, boot_entry_compare): it starts the first."""
    return sorted(entries, key=cmp_to_key(_compare))


def _compare(one: Entry, other: Entry) -> int:
    order = _sign(one.bad, other.bad) or _sign(not one.sort_key, not other.sort_key)
    if not order and one.sort_key and other.sort_key:
        order = _sign(one.sort_key, other.sort_key) or -compare_versions(one.version, other.version)
    order = order or -compare_versions(one.name.lower(), other.name.lower())
    if not order and one.left is not None and other.left is not None:
        order = _sign(other.left, one.left) or _sign(one.done, other.done)
    return order


def _sign(one: object, other: object) -> int:
    return (one > other) - (one < other)  # type: ignore[no-any-return, operator]


_SKIPPED = re.compile(r"[^A-Za-z0-9~^.-]*")
_DIGITS, _LETTERS = re.compile(r"[0-9]*"), re.compile(r"[A-Za-z]*")


def compare_versions(one: str, other: str) -> int:
    """Negative when `one` is older, positive when it is newer, 0 when neither."""
    left, right = 0, 0
    while True:
        left, right = _after(_SKIPPED, one, left), _after(_SKIPPED, other, right)
        for special in "~-^.":
            a, b = one[left : left + 1], other[right : right + 1]
            if special == "-" and not (a and b):  # not before "~": 1~ is older than 1
                return _sign(bool(a), bool(b))
            if special in (a, b):
                if a != b:
                    return _sign(a != special, b != special)
                left, right = left + 1, right + 1
        number = one[left : left + 1].isdigit() or other[right : right + 1].isdigit()
        pattern = _DIGITS if number else _LETTERS
        ends = _after(pattern, one, left), _after(pattern, other, right)
        words = one[left : ends[0]], other[right : ends[1]]
        if order := _compare_numbers(*words) if number else _sign(*words):
            return order
        left, right = ends


def _after(pattern: re.Pattern[str], text: str, start: int) -> int:
    found = pattern.match(text, start)
    return found.end() if found else start


def _compare_numbers(one: str, other: str) -> int:
    """A number is newer than none."""
    if not one or not other:
        return _sign(bool(one), bool(other))
    one, other = one.lstrip("0"), other.lstrip("0")
    return _sign(len(one), len(other)) or _sign(one, other)
