"""A walk over a tree that somebody else may fill and change at any moment.

No link and no mount point is followed, nothing is found by a path, and what is needed is bounded: two descriptors for
each level, at most `DEEPEST` levels, and names as they come. A tree can be deeper than any path and any stack.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

DEEPEST = 100  # levels below the top
FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class TooManyError(Exception):
    """More names than were allowed."""


class Found(NamedTuple):
    """path: below the top, "" for the top itself; name: its last part, in the open folder, which stays the walk's (the
    top is "." in itself); facts: of lstat(2); entered: false for a folder too deep, or of another file system."""

    path: str
    name: str
    folder: int
    facts: os.stat_result
    entered: bool = True


class _Level:
    """An open folder that is being read. most: names that are taken at once when they are to be in order."""

    def __init__(self, name: str | Path, above: int | None, path: str, most: int | None) -> None:
        self.path = path
        self.descriptor = os.open(name, FOLDER, dir_fd=above)
        try:
            self._entries = os.scandir(self.descriptor)
            found = (entry.name for entry in self._entries)
            self.names: Iterator[str] = found if most is None else iter(sorted(islice(found, most)))
        except BaseException:
            os.close(self.descriptor)
            raise

    def close(self) -> None:
        self._entries.close()
        os.close(self.descriptor)


def walk(top: Path, most: int, *, ordered: bool = False) -> Generator[Found, None, None]:
    """The top, then what is in it, a folder before what is in that; ordered: by name. What vanishes is left out.

    Raises OSError for the top, TooManyError when there are more than `most` names below it.
    """
    count, levels = 0, [_Level(top, None, "", most + 1 if ordered else None)]
    try:
        device = os.fstat(levels[0].descriptor).st_dev
        yield Found("", ".", levels[0].descriptor, os.fstat(levels[0].descriptor))
        while levels:
            level = levels[-1]
            name = next(level.names, None)
            if name is None:
                levels.pop().close()
                continue
            count += 1
            if count > most:
                raise TooManyError
            try:
                facts = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
            except OSError:
                continue
            path = f"{level.path}{name}"
            folder = stat.S_ISDIR(facts.st_mode)
            entered = not folder or (len(levels) < DEEPEST and facts.st_dev == device)
            yield Found(path, name, level.descriptor, facts, entered)
            if folder and entered:
                try:
                    levels.append(_Level(name, level.descriptor, f"{path}/", most - count + 1 if ordered else None))
                except OSError:
                    continue  # it has become something else
    finally:
        for level in levels:
            level.close()
