"""Making plans (`common.bundle.windows` has the format): for each window the cheapest way from an old file to the new.

1. The new file is cut into frames, which our zstd makes again to the byte, and plain stretches.
2. What the old file has too is copied: whole frames by their hash, stretches by their content wherever it lies.
3. The rest, frames unpacked, is packed into segments. A segment's prefix is the blocks of the old file that share most
   content with it, found by content-defined chunks; where nothing is shared it has none, and reaches further itself.

The same files and library version give the same bytes, whatever the number of threads. Memory: the old file's index (an
entry per 256 bytes or so), and per thread a window and zstd's tables for 8 MiB (100 MiB at level 19).
"""

from __future__ import annotations

import hashlib
import re
import zlib
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from backports import zstd

from common.bundle import frames
from common.bundle.windows import (
    COPY,
    MAX_RANGE,
    MAX_RANGES,
    PACKED,
    PLAIN,
    REACH,
    WINDOW,
    Item,
    Packing,
    Range,
    Recipe,
    Segment,
    write_plan,
)
from common.errors import BundleError

LEVEL = 19
PREFIX = 5 << 19  # bytes of a prefix at most: it is in memory twice while it is made
SEGMENT = 2 << 20  # bytes of a segment that has a prefix, at most; with 3 MiB of each applying takes 31 MiB, not 29
ALONE = 6 << 20  # bytes of a segment without one
_BLOCK = 64 << 10  # a long stretch of the old file counts as blocks of so many bytes when a prefix is chosen
_LEAST_RUN = 512  # bytes of a plain stretch that are worth a copy of their own
_RANGE = 512 << 10  # bytes of a range that several blocks become: it is read in one go
_BRIDGE = 1024  # bytes between two chosen blocks that are taken along
_DOUBT = 8  # what saves less than this part of the packed bytes is compared with the packed bytes themselves
_LEAST_CHUNK = 48  # bytes; what is shorter says too little
# Where chunks end: after two bytes of these classes, which random bytes have once in 256. A class holds letters, digits
# and machine code alike, so that text and programs are cut as well as packed data.
_EDGE = re.compile(b"[%b][%b]" % (re.escape(bytes(range(5, 256, 16))), re.escape(bytes(range(3, 256, 16)))))


class Payload:
    """The segments of several plans, back to back; the same bytes are there once."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.size = 0
        self._known: dict[bytes, int] = {}

    def add(self, data: bytes) -> int:
        """The offset at which `data` lies."""
        key = hashlib.sha256(data).digest()
        if key not in self._known:
            self._known[key] = self.size
            self.pieces.append(data)
            self.size += len(data)
        return self._known[key]

    def digest(self) -> bytes:
        """SHA-256 of all of it."""
        whole = hashlib.sha256()
        for piece in self.pieces:
            whole.update(piece)
        return whole.digest()

    def cut(self, size: int, count: int) -> None:
        """Forget what was added since there were `count` pieces of `size` bytes."""
        del self.pieces[count:]
        self.size = size
        self._known = {key: at for key, at in self._known.items() if at < size}


class _Unit(NamedTuple):
    """A frame of a file (plain: bytes that it unpacks to) or a stretch of other bytes (plain: its length)."""

    offset: int
    length: int
    plain: int
    packed: bool


class _Piece(NamedTuple):
    """Bytes of the new file from `start` on: kind as of an Item, length in the file, source of a copy."""

    kind: int
    start: int
    length: int
    source: int = 0


@dataclass(frozen=True)
class New:
    """The new file, parsed. packing: None when it has no frames that our library makes again."""

    data: bytes
    packing: Packing | None
    units: tuple[_Unit, ...]
    starts: tuple[int, ...]


def parse(data: bytes, packing: bool = True, jobs: int = 1) -> New:
    """Cut the new file into frames and stretches. `packing` False: as if it had no frames (for a device with another
    version of zstd)."""
    level = frames.level_of(data) if packing else None
    if level is None:
        return New(data, None, (_Unit(0, len(data), len(data), False),), (0,))

    def same(run: frames.Run) -> bool:
        return run.plain is not None and frames.pack(run.plain, level) == data[run.offset : run.offset + run.length]

    units: list[_Unit] = []
    with ThreadPoolExecutor(jobs) as threads:
        for batch in _batches(frames.runs(data), 4 * jobs):
            for run, packed in zip(batch, threads.map(same, batch), strict=True):
                plain = len(run.plain or b"") if packed else run.length
                last = units[-1] if units else None
                if not packed and last and not last.packed:
                    units[-1] = _Unit(last.offset, last.length + run.length, last.plain + run.length, False)
                else:
                    units.append(_Unit(run.offset, run.length, plain, packed))
    return New(data, Packing(level), tuple(units), tuple(unit.offset for unit in units))


def _batches(runs: Iterator[frames.Run], size: int) -> Iterator[list[frames.Run]]:
    batch: list[frames.Run] = []
    for run in runs:
        batch.append(run)
        if len(batch) == size:
            yield batch
            batch = []
    yield batch


@dataclass(frozen=True)
class _Old:
    """The source: its frames by hash, its chunks by checksum (of a frame: where that begins), and its blocks."""

    data: bytes
    frames: dict[bytes, int] = field(default_factory=dict)
    chunks: dict[int, int] = field(default_factory=dict)
    blocks: list[_Unit] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)

    @staticmethod
    def of(data: bytes, expand: bool) -> _Old:
        old = _Old(data)
        for run in frames.runs(data) if expand else (frames.Run(0, len(data), None),):
            if run.plain is not None:
                old.frames.setdefault(_digest(data, run.offset, run.length), run.offset)
                old.blocks.append(_Unit(run.offset, run.length, len(run.plain), True))
                for _, chunk in _chunks(run.plain, 0, len(run.plain)):
                    old.chunks.setdefault(zlib.crc32(chunk), run.offset)
                continue
            for at in range(run.offset, run.offset + run.length, _BLOCK):
                length = min(_BLOCK, run.offset + run.length - at)
                old.blocks.append(_Unit(at, length, length, False))
            for at, chunk in _chunks(data, run.offset, run.offset + run.length):
                old.chunks.setdefault(zlib.crc32(chunk), at)
        old.starts.extend(block.offset for block in old.blocks)
        return old

    def block(self, offset: int) -> int:
        """The number of the block in which a byte of the file lies."""
        return max(0, bisect_right(self.starts, offset) - 1)


def _digest(data: bytes, offset: int, length: int) -> bytes:
    return hashlib.sha256(data[offset : offset + length]).digest()


def _chunks(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """The chunks of data[start:end], each with its place; edges depend on the bytes around them alone."""
    last = start
    for edge in _EDGE.finditer(data, start, end):
        at = edge.end()
        if at - last >= _LEAST_CHUNK:
            yield last, data[last:at]
            last = at
    if end - last >= _LEAST_CHUNK:
        yield last, data[last:end]


def make_plan(new: New, source: bytes | None, payload: Payload, jobs: int = 1, level: int = LEVEL) -> bytes:
    """A plan that makes `new` of `source` (None: of nothing), its segments added to `payload`.

    Raises BundleError `plan-size` for a file that is too large for one plan.
    """
    old = None if source is None else _Old.of(source, new.packing is not None)
    maker = _Maker(new, old, level)
    with ThreadPoolExecutor(jobs) as threads:
        made = threads.map(maker.window, range(0, len(new.data), WINDOW))
        recipes = [_placed(draft, payload) for draft in made]
    return write_plan(len(new.data), len(source or b""), new.packing, recipes)


class _Draft(NamedTuple):
    """A recipe with the segments' bytes still at hand."""

    lead: int
    segments: list[tuple[bytes, int, list[Range]]]
    items: list[Item]

    def cost(self) -> int:
        """Bytes of payload, and about those in the plan."""
        return sum(len(data) + 4 * len(prefix) for data, _, prefix in self.segments)


def _placed(draft: _Draft, payload: Payload) -> Recipe:
    segments = [Segment(payload.add(data), len(data), plain, tuple(prefix)) for data, plain, prefix in draft.segments]
    return Recipe(draft.lead, tuple(segments), tuple(draft.items))


class _Maker:
    def __init__(self, new: New, old: _Old | None, level: int) -> None:
        self._new, self._old, self._level = new, old, level

    def window(self, start: int) -> _Draft:
        """The recipe of the window that begins at byte `start`."""
        end = min(start + WINDOW, len(self._new.data))
        pieces = self._extend(self._pieces(start, end), start, end)
        items: list[Item] = []
        plains: list[bytes] = []
        for piece in pieces:
            data = self._new.data[piece.start : piece.start + piece.length]
            if piece.kind == PACKED:
                data = zstd.decompress(data)
            items.append(Item(piece.kind, piece.length if piece.kind == COPY else len(data), piece.source))
            if piece.kind != COPY:
                plains.append(data)
        draft = _Draft(max(0, start - pieces[0].start), self._segments(b"".join(plains), pieces), items)
        packed = sum(piece.length for piece in pieces if piece.kind != COPY)
        if not packed or draft.cost() < packed - packed // _DOUBT or self._new.packing is None:
            return draft
        return min(draft, self._as_it_is(pieces, start, end), key=_Draft.cost)

    def _as_it_is(self, pieces: Sequence[_Piece], start: int, end: int) -> _Draft:
        """The recipe with no frame unpacked: what a level below ours gains on the level of the file is not certain."""
        items: list[Item] = []
        plains: list[bytes] = []
        for piece in pieces:
            low, high = max(start, piece.start), min(end, piece.start + piece.length)
            items.append(Item(COPY if piece.kind == COPY else PLAIN, high - low, piece.source))
            if piece.kind != COPY:
                plains.append(self._new.data[low:high])
        return _Draft(0, self._without(b"".join(plains)), items)

    # -- what is copied ------------------------------------------------------------------------------------------------

    def _pieces(self, start: int, end: int) -> Iterator[_Piece]:
        """What the window is made of; a frame that begins before it or ends behind it is whole unless it is copied."""
        old, data = self._old, self._new.data
        number = max(0, bisect_right(self._new.starts, start) - 1)
        for unit in self._new.units[number:]:
            if unit.offset >= end:
                break
            low, high = max(start, unit.offset), min(end, unit.offset + unit.length)
            found = old.frames.get(_digest(data, unit.offset, unit.length)) if old and unit.packed else None
            if found is not None:
                yield _Piece(COPY, low, high - low, found + low - unit.offset)
            elif unit.packed:
                yield _Piece(PACKED, unit.offset, unit.length)
            elif old is not None and high - low >= _LEAST_RUN:
                yield from self._copies(old, low, high)
            else:
                yield _Piece(PLAIN, low, high - low)

    def _copies(self, old: _Old, start: int, end: int) -> Iterator[_Piece]:
        """A stretch as copies of what is somewhere in the old file, and what is new in it."""
        data, done, shift = self._new.data, start, 0
        for at, chunk in _chunks(data, start, end):
            if at < done:
                continue
            source = at + shift
            if not 0 <= source <= len(old.data) - len(chunk) or old.data[source : source + len(chunk)] != chunk:
                source = old.chunks.get(zlib.crc32(chunk), -1)
                if source < 0 or old.data[source : source + len(chunk)] != chunk:
                    continue
            before = _common_end(data, done, at, old.data, source)
            length = before + _common_start(data, at, end, old.data, source)
            if length < _LEAST_RUN:
                continue
            if at - before > done:
                yield _Piece(PLAIN, done, at - before - done)
            yield _Piece(COPY, at - before, length, source - before)
            done, shift = at - before + length, source - at
        if done < end:
            yield _Piece(PLAIN, done, end - done)

    def _extend(self, pieces: Iterator[_Piece], start: int, end: int) -> list[_Piece]:
        """Let copies take in what is the same before and behind them, and join what belongs together."""
        found: list[_Piece] = []
        for piece in pieces:
            last = found[-1] if found else None
            if last and self._old and last.kind == COPY and piece.kind == PLAIN:
                same = _common_start(
                    self._new.data, piece.start, piece.start + piece.length, self._old.data, last.source + last.length
                )
                found[-1] = last._replace(length=last.length + same)
                piece = _Piece(PLAIN, piece.start + same, piece.length - same)
            elif last and self._old and last.kind == PLAIN and piece.kind == COPY:
                same = _common_end(self._new.data, last.start, piece.start, self._old.data, piece.source)
                found[-1] = last._replace(length=last.length - same)
                piece = _Piece(COPY, piece.start - same, piece.length + same, piece.source - same)
                if not found[-1].length:
                    found.pop()
            last = found[-1] if found else None
            if not piece.length:
                continue
            if last and _joins(last, piece):
                found[-1] = last._replace(length=last.length + piece.length)
            else:
                found.append(piece)
        return found

    # -- what is packed ------------------------------------------------------------------------------------------------

    def _segments(self, plain: bytes, pieces: Sequence[_Piece]) -> list[tuple[bytes, int, list[Range]]]:
        if not plain:
            return []
        if self._old is None:
            return self._without(plain)
        hints = self._hints(self._old, pieces)
        count = -(-len(plain) // SEGMENT)
        size = -(-len(plain) // count)
        made, covered = [], 0
        for at in range(0, len(plain), size):
            part = plain[at : at + size]
            votes = self._votes(self._old, part)
            covered += sum(votes.values())
            made.append(self._with(self._old, part, votes, hints))
        if covered < len(plain) // 2:
            other = self._without(plain)
            if sum(len(data) for data, _, _ in other) < sum(len(data) + 4 * len(prefix) for data, _, prefix in made):
                return other
        return made

    def _without(self, plain: bytes) -> list[tuple[bytes, int, list[Range]]]:
        count = -(-len(plain) // ALONE)
        size = -(-len(plain) // count)
        parts = [plain[at : at + size] for at in range(0, len(plain), size)]
        return [(self._compress(part, b""), len(part), []) for part in parts]

    def _votes(self, old: _Old, part: bytes) -> Counter[int]:
        """Block of the old file → bytes of `part` that it has too."""
        votes: Counter[int] = Counter()
        for _, chunk in _chunks(part, 0, len(part)):
            place = old.chunks.get(zlib.crc32(chunk))
            if place is not None:
                votes[old.block(place)] += len(chunk)
        return votes

    def _hints(self, old: _Old, pieces: Sequence[_Piece]) -> list[int]:
        """Blocks that lie where changed pieces would: behind the last copy, before the next, at the same distance from
        the begin and from the end. Tables with a number changed in each row are found only thus."""
        hints: list[int] = []
        for number, piece in enumerate(pieces):
            if piece.kind == COPY:
                continue
            places = [piece.start, len(old.data) - (len(self._new.data) - piece.start)]
            if number and pieces[number - 1].kind == COPY:
                places.append(pieces[number - 1].source + pieces[number - 1].length)
            if number + 1 < len(pieces) and pieces[number + 1].kind == COPY:
                places.append(pieces[number + 1].source - piece.length)
            for place in places:
                first, last = old.block(place), old.block(place + piece.length)
                hints.extend(range(first, last + 1))
        return hints

    def _with(
        self, old: _Old, part: bytes, votes: Counter[int], hints: Sequence[int]
    ) -> tuple[bytes, int, list[Range]]:
        budget = min(PREFIX, REACH - len(part)) - 2 * _BRIDGE
        chosen: set[int] = set()
        ordered = sorted(votes, key=lambda block: (-votes[block], block))
        for block in dict.fromkeys((*ordered, *hints)):
            cost = old.blocks[block].plain + _BRIDGE
            if cost <= budget and old.blocks[block].length <= MAX_RANGE:
                budget -= cost
                chosen.add(block)
        ranges = _ranges(old.blocks, sorted(chosen))
        pieces = (old.data[place.offset : place.offset + place.length] for place in ranges)
        if self._new.packing is None:
            prefix = b"".join(pieces)
        else:
            prefix = b"".join(piece for data in pieces for piece in frames.expand(data))
        return self._compress(part, prefix), len(part), ranges

    def _compress(self, part: bytes, prefix: bytes) -> bytes:
        reach = max(10, (len(part) + len(prefix) - 1).bit_length())
        options: dict[int, int] = {
            zstd.CompressionParameter.compression_level: self._level,
            zstd.CompressionParameter.window_log: reach,
            zstd.CompressionParameter.content_size_flag: 1,
            zstd.CompressionParameter.checksum_flag: 0,
        }
        base = zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= 8 else None
        packer = zstd.ZstdCompressor(options=options, zstd_dict=base)
        packer.set_pledged_input_size(len(part))
        return packer.compress(part, zstd.ZstdCompressor.FLUSH_FRAME)


def _joins(last: _Piece, piece: _Piece) -> bool:
    if last.kind != piece.kind or last.start + last.length != piece.start:
        return False
    return piece.kind == PLAIN or (piece.kind == COPY and last.source + last.length == piece.source)


def _ranges(blocks: Sequence[_Unit], chosen: Sequence[int]) -> list[Range]:
    """The chosen blocks, in order, as few ranges; what lies between two is taken along when it is little, unpacked."""
    ranges: list[Range] = []
    for before, number in zip((-1, *chosen), chosen, strict=False):
        block = blocks[number]
        if ranges:
            last = ranges[-1]
            length = block.offset + block.length - last.offset
            between = sum(one.plain for one in blocks[before + 1 : number])
            if between < _BRIDGE and length <= _RANGE:
                ranges[-1] = Range(last.offset, length)
                continue
        if len(ranges) == MAX_RANGES:
            break
        ranges.append(Range(block.offset, block.length))
    return ranges


def _common_start(new: bytes, at: int, end: int, old: bytes, source: int) -> int:
    """How many bytes new[at:end] and old[source:] have in common from their beginning."""
    limit, same, step = min(end - at, len(old) - source), 0, 64
    while same < limit:
        step = min(step, limit - same)
        if new[at + same : at + same + step] == old[source + same : source + same + step]:
            same += step
            step *= 2
        elif step == 1:
            break
        else:
            step = max(1, step // 8)
    return max(0, same)


def _common_end(new: bytes, start: int, at: int, old: bytes, source: int) -> int:
    """How many bytes new[start:at] and old[:source] have in common at their end."""
    limit, same, step = min(at - start, source), 0, 64
    while same < limit:
        step = min(step, limit - same)
        if new[at - same - step : at - same] == old[source - same - step : source - same]:
            same += step
            step *= 2
        elif step == 1:
            break
        else:
            step = max(1, step // 8)
    return same


__all__ = ["BundleError", "New", "Payload", "make_plan", "parse"]
