"""Reading what services said: FOLDER/UNIT/NNNNNNNN.log, written by the shims.

A record is one line, `REALTIME MONOTONIC BOOT STREAM TEXT`: nanoseconds since 1970 and since boot, the first 8 digits
of the boot id, a letter, and the bytes that the service wrote. Letters: o, e: a line of stdout, stderr; O, E: the line
was longer than 8192 bytes and goes on in the stream's next record; s: the shim says something (`started 42`,
`exited 1 0`, `dropped 17`, `lost 3`). Files are numbered upwards; the highest is being written, the oldest vanish. A
number never gets other content, so reading needs no lock. What is no record (torn by a power cut) is skipped and
counted.

Reading goes through blocks and keeps at most `Query.last` records; it blocks on the disk only.
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
from typing import Any, BinaryIO

from common.errors import NotFoundError
from daemon.core.rpc import strict

MAX_LAST = 100_000  # records that are kept in memory for `last`
POLL = 0.25  # seconds between two looks of `follow`
_BLOCK = 64 << 10
_BATCH = 200  # records that a thread reads at a time
_LONGEST = 8192 + 128  # bytes of a record
_DEPTH = 10  # levels of the fields in a line
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
        return found if isinstance(found, dict) and _shallow(found) else None

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints: the members, and `fields` when there are some."""
        fields = self.fields
        return {**self.__dict__, **({} if fields is None else {"fields": fields})}


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
        while batch := await asyncio.to_thread(lambda: list(islice(known, _BATCH))):
            for record in batch:
                yield record
        tails = [_Tail(self, unit, self.folder / unit, *end) for unit, end in ends.items()]
        try:
            while True:
                for record in heapq.merge(*(tail.take() for tail in tails), key=self._when):
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

    def _end(self, unit: str) -> tuple[int, int]:
        """Number and size of the newest file: the end of what there is now; (0, 0) before the first."""
        if not _UNIT.fullmatch(unit):
            raise NotFoundError(f"{unit!r:.80} is no name of a unit", reason="log-unit")
        for number in reversed(numbers(self.folder / unit)):
            with contextlib.suppress(OSError):  # it may have vanished by now
                return number, _file(self.folder / unit, number).stat().st_size
        return 0, 0

    def _until(self, ends: dict[str, tuple[int, int]], query: Query) -> Iterator[Record]:
        if query.last is None:
            return heapq.merge(*(self._forward(unit, end, query) for unit, end in ends.items()), key=self._when)
        last = min(query.last, MAX_LAST)
        newest = heapq.merge(
            *(self._newest(unit, end, query, last) for unit, end in ends.items()), key=self._when, reverse=True
        )
        return reversed([record for record, _ in zip(newest, range(last), strict=False)])

    def _forward(self, unit: str, end: tuple[int, int], query: Query) -> Iterator[Record]:
        for number, stream in _open_all(self.folder / unit, end, newest_first=False):
            with stream:
                left = end[1] if number == end[0] else None
                yield from self._matching(query, self.records(unit, lines(stream, left)))

    def _newest(self, unit: str, end: tuple[int, int], query: Query, most: int) -> Iterator[Record]:
        for number, stream in _open_all(self.folder / unit, end, newest_first=True):
            with stream:
                size = end[1] if number == end[0] else os.fstat(stream.fileno()).st_size
                for record in self._matching(query, self.records(unit, lines_backward(stream, size))):
                    if most == 0:
                        return
                    most -= 1
                    yield record

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
            match = _RECORD.fullmatch(line)
            if match is None or len(line) > _LONGEST:
                self.damaged += 1
                continue
            realtime, monotonic, boot, letter, text = match.groups()
            name = _STREAMS[letter.lower()]
            shown = text.decode("utf-8", "backslashreplace")
            yield Record(unit, int(realtime), int(monotonic), boot.decode(), name, shown, letter in b"OE")


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

    def take(self) -> Iterator[Record]:
        """Whole records of at most one block: a writer that is faster than us must not keep the others waiting."""
        newer = self._newer()
        block = self.stream.read(_BLOCK) if self.stream else b""  # after the look for newer ones: then this is the end
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


def _shallow(value: object) -> bool:
    """Whether it nests no deeper than readers and D-Bus (`doors.values`) take it within a record."""
    layer = [value]
    for _ in range(_DEPTH):
        layer = [
            inner
            for one in layer
            if isinstance(one, dict | list)
            for inner in (one.values() if isinstance(one, dict) else one)
        ]
    return not layer


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


def lines_backward(stream: BinaryIO, end: int) -> Iterator[bytes]:
    """Lines before `end`, the last one first; a line longer than two blocks comes in pieces."""
    rest = b""
    first = True
    while end > 0:
        start = max(0, end - _BLOCK)
        stream.seek(start)
        block = stream.read(end - start)
        if first:
            block, first = block.removesuffix(b"\n"), False
        pieces = (block + rest).split(b"\n")
        end = start
        rest = pieces.pop(0)
        yield from reversed(pieces)
        if len(rest) > _BLOCK:
            yield rest
            rest = b""
    if rest or not first:
        yield rest


def _open_all(folder: Path, end: tuple[int, int], *, newest_first: bool) -> Iterator[tuple[int, BinaryIO]]:
    for number in sorted((n for n in numbers(folder) if n <= end[0]), reverse=newest_first):
        with contextlib.suppress(FileNotFoundError):  # rotated away while we read
            yield number, _file(folder, number).open("rb")


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:08}.log"
