"""What is mounted where (proc_pid_mountinfo(5)), and where the files of an overlay really are."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from common.lines import split_lines
from daemon.linux.facts import ROOT, text

_ESCAPE = re.compile(r"\\([0-7]{3})")
_PSEUDO = {"proc", "sysfs", "cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "debugfs", "tracefs", "securityfs"}
_PSEUDO |= {"pstore", "efivarfs", "bpf", "configfs", "fusectl", "hugetlbfs", "binfmt_misc", "autofs", "nsfs"}


@dataclass(frozen=True)
class Mount:
    """device: "MAJOR:MINOR"; options: those of this mount; details: those of the file system."""

    device: str
    point: str
    kind: str
    source: str
    options: tuple[str, ...]
    details: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written there."""
        return "ro" in self.options or "ro" in self.details

    def detail(self, key: str) -> str | None:
        """The value of `key=value` among the details."""
        return next((one[len(key) + 1 :] for one in self.details if one.startswith(f"{key}=")), None)


def mounts(root: Path = ROOT) -> list[Mount]:
    """Every mount that this process sees, in the order in which they were made."""
    found = []
    for line in split_lines(text(root / "proc/self/mountinfo") or ""):
        before, _, after = line.partition(" - ")
        words, rest = before.split(" "), after.split(" ")  # the kernel escapes blanks in names, and no others
        if len(words) >= 6 and len(rest) >= 2:
            details = tuple(rest[2].split(",")) if len(rest) > 2 else ()
            found.append(
                Mount(words[2], _plain(words[4]), rest[0], _plain(rest[1]), tuple(words[5].split(",")), details)
            )
    return found


def holding(path: Path, table: list[Mount]) -> Mount | None:
    """The mount that a path is in; of several at one point the one on top."""
    best = None
    for one in table:
        below = one.point == "/" or f"{path}/".startswith(f"{one.point}/")
        if below and (best is None or len(one.point) >= len(best.point)):
            best = one
    return best


def backing(path: Path, table: list[Mount]) -> Path:
    """Where what is written to `path` really goes: on an overlay the same name in its upper layer."""
    mount = holding(path, table)
    upper = mount.detail("upperdir") if mount and mount.kind == "overlay" else None
    if mount is None or upper is None:
        return path
    return Path(_plain(upper)) / os.path.relpath(path, mount.point)


def file_systems(table: list[Mount], root: Path = ROOT) -> list[dict[str, object]]:
    """Those with a size, each once (where it was mounted first); sizes in bytes."""
    rows, seen = [], set()
    for one in table:
        if one.kind in _PSEUDO or one.device in seen:
            continue
        seen.add(one.device)
        try:
            space = os.statvfs(root / one.point.lstrip("/"))
        except OSError:
            continue
        if not space.f_blocks:
            continue
        size, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
        used = size - space.f_bfree * space.f_frsize
        rows.append(
            {
                "path": one.point,
                "type": one.kind,
                "source": one.source,
                "size": size,
                "used": used,
                "free": free,
                "percent": round(100 * used / (used + free), 1) if used + free else 100.0,
                "inodes": space.f_files,
                "inodes-free": space.f_favail,
                "read-only": one.read_only,
            }
        )
    return rows


def errors(point: Path, root: Path = ROOT) -> tuple[bool, int]:
    """Of the file system that is mounted there: whether it is read-only, how many errors the kernel has counted
    (fs/ext4/sysfs.c); (False, 0) for another kind, and when none is."""
    one = next((one for one in reversed(mounts(root)) if one.point == os.fspath(point)), None)
    if one is None or one.kind != "ext4":
        return False, 0
    count = text(root / "sys/fs/ext4" / Path(one.source).name / "errors_count") or "0"
    return one.read_only, int(count) if count.isdigit() else 0


def _plain(word: str) -> str:
    """Space, tab, newline and backslash stand as three octal digits there."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), word)
