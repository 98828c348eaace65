"""Reading what services said: FOLDER/UNIT/NNNNNNNN.log, written by the shims.

A record is one line, `REALTIME MONOTONIC BOOT STREAM TEXT`: nanoseconds since 1970 and since boot, the first 8 digits
of the boot id, a letter, and the bytes that the service wrote. Letters: o, e: a line of stdout, stderr; O, E: the line
was longer than 8192 bytes and goes on in the stream's next record; s: the shim says something (`started 42`,
`exited 1 0`, `dropped 17`, `lost 3`). Files are numbered upwards; the highest is being written, the oldest vanish. A
number never gets other content, so reading needs no lock. What is no record (torn by a power cut) is skipped and
counted.

Reading keeps a block for each unit, never what was asked for, and blocks on the disk only.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import os
import re
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from common.errors import NotFoundError
from common.nesting import deeper
from daemon.core.rpc import strict

MAX_LAST = 100_000  # records that `last` may ask for
POLL = 0.25  # seconds between two looks of `follow`
_BLOCK = 64 << 10
_BATCH = 64 << 10  # characters of records that a thread reads at a time
_LONGEST = 8192 + 128  # bytes of a record
_DEPTH = 10  # levels of the fields in a line: readers, and D-Bus (`doors.values`), take no more within a record
_RECORD = re.compile(rb"(\d{1,20}) (\d{1,20}) ([0-9a-f]{8}) ([oeOEs]) (.*)", re.DOTALL)
_STREAMS = {b"o": "stdout", b"e": "stderr", b"s": "shim"}
_UNIT = re.compile(r"[A-Za-z0-9@_:-][A-Za-z0-9@._:-]{0,63}")
_FILE = re.compile(r"(\d{8})\.log")


@dataclass(frozen=True)
class Record:
    """One line. realtime, monotonic: nanoseconds; stream: "stdout", "stderr" or "shim"; text: decoded, with what is not
    UTF-8 as \\xNN; more: the line goes on in the stream's next record."""

    unit: str
    realtime: int
    monotonic: int
    boot: str
    stream: str
    text: str
    more: bool = False

    @property
    def fields(self) -> dict[str, Any] | None:
        """The members when the line is a JSON object that an answer can hold, else None."""
        if self.more or not (self.text.startswith("{") and self.text.rstrip().endswith("}")):
            return None
        try:
            found = strict(self.text)
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and not deeper(found, _DEPTH) else None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: the members, and `fields` when there are some."""
        fields = self.fields
        return {**self.__dict__, **({} if fields is None else {"fields": fields})}


class Place(NamedTuple):
    """A place in the log of a unit: number of the file, bytes before it. (0, 0): before the first file."""

    number: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Query:
    """Which records.

    units: empty for all, those included that come while it is followed. Times in nanoseconds since 1970, `until`
    excluded. boot: the beginning of a boot id, "" for all. contains: text that
    must occur. streams: of Record.stream, empty for all. last: only so many newest ones (MAX_LAST at most), None: all.
    """

    units: tuple[str, ...] = ()
    since: int | None = None
    until: int | None = None
    boot: str = ""
    contains: str = ""
    streams: frozenset[str] = frozenset()
    last: int | None = None

    def matches(self, record: Record, at: int) -> bool:
        """Whether all but `last` allows it, a record of the time `at`."""
        return (
            (self.since is None or at >= self.since)
            and (self.until is None or at < self.until)
            and record.boot.startswith(self.boot[:8])
            and self.contains in record.text
            and (not self.streams or record.stream in self.streams)
        )


@dataclass(frozen=True)
class Present:
    """How the clocks stand. boot: first 8 digits of the boot id; offset: nanoseconds from 1970 to the boot."""

    boot: str
    offset: int

    @classmethod
    def now(cls, boot: str) -> Present:
        """The system's."""
        return cls(boot[:8], time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME))


class Reader:
    """Logs below `folder` (/var/log/mixos/units). damaged: lines found that were no record.

    With `present`, records of this boot are ordered and searched by the clock that is never set, as if the other one
    had always been right; else, and for earlier boots, what the clock said when they were written is all there is.
    """

    def __init__(self, folder: Path, present: Present | None = None) -> None:
        self.folder = folder
        self.present = present
        self.damaged = 0

    def units(self) -> list[str]:
        """Units that have logs."""
        with contextlib.suppress(OSError):
            return sorted(path.name for path in self.folder.iterdir() if _UNIT.fullmatch(path.name))
        return []

    def read(self, query: Query) -> Iterator[Record]:
        """Matching records, oldest first; those of several units by time. Raises NotFoundError `log-unit`."""
        yield from self._until({unit: self._end(unit) for unit in query.units or self.units()}, query)

    async def follow(self, query: Query) -> AsyncIterator[Record]:
        """`read`, then each new record soon after it was written, until the caller stops; each one once.

        Raises NotFoundError `log-unit`.
        """
        ends = {unit: self._end(unit) for unit in query.units or self.units()}
        known = self._until(ends, query)
        while batch := await asyncio.to_thread(take, known):
            for record in batch:
                yield record
        tails = [_Tail(self, unit, self.folder / unit, *end) for unit, end in ends.items()]
        try:
            while True:
                share = max(2 * _LONGEST, _BLOCK // max(1, len(tails)))
                for record in heapq.merge(*(tail.take(share) for tail in tails), key=self._when):
                    if query.matches(record, self._when(record)):
                        yield record
                if all(tail.idle for tail in tails):
                    await asyncio.sleep(POLL)
                    known_units = {tail.unit for tail in tails}
                    new = [] if query.units else [unit for unit in self.units() if unit not in known_units]
                    tails += [_Tail(self, unit, self.folder / unit, 0, 0) for unit in new]
        finally:
            for tail in tails:
                tail.close()

    def _end(self, unit: str) -> Place:
        """The end of what there is now."""
        if not _UNIT.fullmatch(unit):
            raise NotFoundError(f"{unit!r:.80} is no name of a unit", reason="log-unit")
        for number in reversed(numbers(self.folder / unit)):
            with contextlib.suppress(OSError):  # it may have vanished by now
                return Place(number, _file(self.folder / unit, number).stat().st_size)
        return Place()

    def _until(self, ends: dict[str, Place], query: Query) -> Iterator[Record]:
        begins = dict.fromkeys(ends, Place()) if query.last is None else self._begins(ends, query, query.last)
        return heapq.merge(
            *(self._forward(unit, begin, ends[unit], query) for unit, begin in begins.items()), key=self._when
        )

    def _begins(self, ends: dict[str, Place], query: Query, last: int) -> dict[str, Place]:
        """Where the oldest of the `last` newest records of each unit is, for those that have some. Only this is kept
        of them: who does not read on must not cost what they want to read."""
        newest = heapq.merge(
            *(self._newest(unit, end, query) for unit, end in ends.items()), key=lambda found: found[0], reverse=True
        )
        return {unit: place for _, unit, place in islice(newest, min(last, MAX_LAST))}

    def _forward(self, unit: str, begin: Place, end: Place, query: Query) -> Iterator[Record]:
        for number, stream in _open_all(self.folder / unit, begin, end, newest_first=False):
            with stream:
                at = begin.offset if number == begin.number else 0
                stream.seek(at)
                left = end.offset - at if number == end.number else None
                yield from self._matching(query, self.records(unit, lines(stream, left)))

    def _newest(self, unit: str, end: Place, query: Query) -> Iterator[tuple[int, str, Place]]:
        """(time, unit, place) of each matching record, the newest first."""
        for number, stream in _open_all(self.folder / unit, Place(), end, newest_first=True):
            with stream:
                size = end.offset if number == end.number else os.fstat(stream.fileno()).st_size
                for offset, line in lines_backward(stream, size):
                    record = self._record(unit, line)
                    if record is not None and query.matches(record, at := self._when(record)):
                        yield at, unit, Place(number, offset)

    def _matching(self, query: Query, found: Iterator[Record]) -> Iterator[Record]:
        return (record for record in found if query.matches(record, self._when(record)))

    def _when(self, record: Record) -> int:
        """Nanoseconds since 1970."""
        if self.present is not None and record.boot == self.present.boot:
            return record.monotonic + self.present.offset
        return record.realtime

    def records(self, unit: str, found: Iterator[bytes]) -> Iterator[Record]:
        """Lines as records; the others are counted."""
        for line in found:
            record = self._record(unit, line)
            if record is not None:
                yield record
            else:
                self.damaged += 1

    def _record(self, unit: str, line: bytes) -> Record | None:
        match = _RECORD.fullmatch(line)
        if match is None or len(line) > _LONGEST:
            return None
        realtime, monotonic, boot, letter, text = match.groups()
        shown = text.decode("utf-8", "backslashreplace")
        name = _STREAMS[letter.lower()]
        return Record(unit, int(realtime), int(monotonic), boot.decode(), name, shown, letter in b"OE")


class _Tail:
    """Follows one unit from a position on."""

    def __init__(self, reader: Reader, unit: str, folder: Path, number: int, offset: int) -> None:
        self.reader = reader
        self.unit = unit
        self.folder = folder
        self.number = number
        self.stream = self._open(number)
        if self.stream:
            self.stream.seek(offset)
        self.idle = False

    def take(self, most: int) -> Iterator[Record]:
        """Whole records of at most so many bytes: a writer that is faster than us must not keep the others waiting."""
        newer = self._newer()
        block = self.stream.read(most) if self.stream else b""  # after the look for newer ones: then this is the end
        whole = block.rfind(b"\n") + 1
        if self.stream and len(block) > whole:
            self.stream.seek(whole - len(block), os.SEEK_CUR)  # what is being written now comes with the next look
        self.idle = not whole
        if newer and not whole:
            self.close()
            self.number, self.idle = newer, False
            self.stream = self._open(self.number)
        return self.reader.records(self.unit, iter(block[:whole].split(b"\n")[:-1]))

    def _newer(self) -> int:
        """Number of the next file, or 0. The oldest vanish first: while ours is there, the next one is too."""
        if self.stream and os.fstat(self.stream.fileno()).st_nlink:
            return self.number + 1 if _file(self.folder, self.number + 1).exists() else 0
        return next((number for number in numbers(self.folder) if number > self.number), 0)

    def close(self) -> None:
        if self.stream:
            self.stream.close()

    def _open(self, number: int) -> BinaryIO | None:
        with contextlib.suppress(OSError):
            return _file(self.folder, number).open("rb")
        return None


def take(found: Iterator[Record]) -> list[Record]:
    """The next records, at least one if there is one."""
    batch: list[Record] = []
    size = 0
    while size < _BATCH and (record := next(found, None)) is not None:
        batch.append(record)
        size += 200 + len(record.text)  # what a record is besides its text
    return batch


def numbers(folder: Path) -> list[int]:
    """Numbers of the log files in `folder`, the oldest first."""
    with contextlib.suppress(OSError):
        return sorted(int(match[1]) for path in folder.iterdir() if (match := _FILE.fullmatch(path.name)))
    return []


def lines(stream: BinaryIO, left: int | None) -> Iterator[bytes]:
    """Lines from here on, of the next `left` bytes or of all, without newline; none is longer than a block."""
    while line := stream.readline(_BLOCK if left is None else min(_BLOCK, left)):
        left = None if left is None else left - len(line)
        yield line.removesuffix(b"\n")


def lines_backward(stream: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """(where it begins, line) for the lines before `end`, the last one first; one longer than two blocks comes in
    pieces."""
    rest = b""
    first = True
    while end > 0:
        start = max(0, end - _BLOCK)
        stream.seek(start)
        block = stream.read(end - start)
        if first:
            block, first = block.removesuffix(b"\n"), False
        block += rest
        pieces = block.split(b"\n")
        rest = pieces.pop(0)
        at = start + len(block) + 1
        for piece in reversed(pieces):
            at -= len(piece) + 1
            yield at, piece
        end = start
        if len(rest) > _BLOCK:
            yield start, rest
            rest = b""
    if rest or not first:
        yield 0, rest


def _open_all(folder: Path, begin: Place, end: Place, *, newest_first: bool) -> Iterator[tuple[int, BinaryIO]]:
    there = [number for number in numbers(folder) if begin.number <= number <= end.number]
    for number in sorted(there, reverse=newest_first):
        with contextlib.suppress(FileNotFoundError):  # rotated away while we read
            yield number, _file(folder, number).open("rb")


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.log"
