"""Plans: how a device makes a new file (the image of a slot, the UKI) of the one that it runs and a payload.

The new file is made in windows of 4 MiB, each by itself and in any order; the signed manifest has the SHA-256 of each.
A plan is the list of their recipes. It is trusted by its hash in that manifest, and still every number is bounded here.

A plan is `MIXPLAN1`, then one zstd frame of at most 1 MiB unpacked, in which every number is an unsigned LEB128 of at
most 8 bytes, or such a number that stands for a signed one (zigzag: 0, -1, 1, -2, …):

    size of the new file, size of the source (0: none is needed)
    level at which frames are packed again (0: no frames are unpacked or packed), then, unless it is 0, the version of
      the zstd library that made them: three numbers
    for each window:
      lead: bytes that the items make before the window begins (a frame that the window before has the first part of)
      number of segments, then for each:
        bytes of payload, their offset as the distance from the end of the last segment's (signed)
        bytes that it unpacks to
        number of ranges of the source that are its prefix; for each its offset as the distance from the end of the last
          range (signed) and its length
      number of items, then for each: a number n, of which the two lowest bits say what n >> 2 bytes are:
        0 copied from the source, from the offset that follows as the distance from the end of the last copy (signed)
        1 taken from the segments
        2 taken from the segments and packed into a frame

A segment is one zstd frame that says its size; its prefix (raw content, no dictionary) is the ranges one after another,
each with its own frames unpacked (`common.bundle.frames`) if the plan has a level. The items use up the segments, and
make at least what the window needs; what is over (the rest of a frame that the next window has too) is dropped.

Memory: prefix and segment have at most 8 MiB together, the window 4 MiB, a frame 1 MiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from backports import zstd

from common.bundle import frames
from common.errors import BundleError

WINDOW = 4 << 20  # bytes; the last one is shorter
REACH = 8 << 20  # bytes of a segment and its prefix together: the window of its zstd frame
MAX_RANGE = 2 << 20  # bytes of one range, as they lie in the source
MAX_SIZE = 1 << 36  # bytes of a file: 64 GiB
MAX_PLAN = 1 << 20  # bytes of a plan, packed and unpacked
MAX_SEGMENTS = 64  # of a window; together 24 MiB unpacked, for 4 MiB of a well packed file
MAX_WINDOW_PLAIN = 64 << 20  # bytes that the segments of a window unpack to
MAX_RANGES = 256  # of a segment
MAX_ITEMS = 16384  # of a window
MAGIC = b"MIXPLAN1"
COPY, PLAIN, PACKED = range(3)
_PIECE = 256 << 10  # bytes of payload or source read at once, and unpacked at once
_FRAME_OVERHEAD = 64 << 10  # by which a segment may be longer packed than unpacked: far above what zstd needs

Read = Callable[[int, int], bytes]
Write = Callable[[int, memoryview], None]


class Range(NamedTuple):
    """Bytes of the source."""

    offset: int
    length: int


class Segment(NamedTuple):
    """One zstd frame of the payload: where it is, what it unpacks to, and of what its prefix is made."""

    offset: int
    length: int
    plain: int
    prefix: tuple[Range, ...]


class Item(NamedTuple):
    """A piece of a window. kind: COPY, PLAIN or PACKED; length: in bytes before packing; offset: of a copy."""

    kind: int
    length: int
    offset: int = 0


class Recipe(NamedTuple):
    """How one window is made."""

    lead: int
    segments: tuple[Segment, ...]
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Packing:
    """How frames are packed again: zstd's level, and the version of the library that gives the same bytes."""

    level: int
    version: tuple[int, int, int] = field(default=zstd.zstd_version_info)


@dataclass(frozen=True)
class Target:
    """The file to be made: its size, and the SHA-256 of each window, as the manifest has them."""

    size: int
    windows: tuple[bytes, ...]

    def check(self) -> None:
        """Raise BundleError `target-windows` unless there is a digest for each window."""
        if not 0 < self.size <= MAX_SIZE or len(self.windows) != -(-self.size // WINDOW):
            raise BundleError(f"{len(self.windows)} hashes of windows for {self.size} bytes", "target-windows")
        if any(len(digest) != hashlib.sha256().digest_size for digest in self.windows):
            raise BundleError("a window's hash is no SHA-256", "target-windows")

    @staticmethod
    def of(data: bytes | memoryview) -> Target:
        """The target that is `data`."""
        starts = range(0, len(data), WINDOW)
        return Target(len(data), tuple(hashlib.sha256(data[at : at + WINDOW]).digest() for at in starts))


# --- the bytes of a plan ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A plan that is sound: all of it has been read once, and every number is within its bounds.

    size, source: bytes of the new file and of the one it is made from (0: none); transfer: bytes of payload that all
    windows fetch. Recipes are read anew each time, so a plan takes no more memory than its bytes.
    """

    size: int
    source: int
    packing: Packing | None
    transfer: int
    _body: bytes
    _start: int

    def recipes(self) -> Iterator[Recipe]:
        """The recipe of each window, in order."""
        return _recipes(_Numbers(self._body, self._start), self.size, self.source)

    def runs_here(self) -> bool:
        """Whether this machine's zstd is the one that the plan needs."""
        return self.packing is None or self.packing.version == zstd.zstd_version_info


def read_plan(data: bytes) -> Plan:
    """Raises BundleError, and nothing else, whatever the bytes."""
    if data[: len(MAGIC)] != MAGIC or len(data) > MAX_PLAN:
        raise BundleError("this is no plan of a format that is known here", "plan-format")
    try:
        unpacker = zstd.ZstdDecompressor(
            options={zstd.DecompressionParameter.window_log_max: MAX_PLAN.bit_length() - 1}
        )
        body = unpacker.decompress(data[len(MAGIC) :], MAX_PLAN)
    except zstd.ZstdError as error:
        raise BundleError(f"the plan cannot be unpacked: {error}", "plan-packed") from error
    if not unpacker.eof or unpacker.unused_data:
        raise BundleError("the plan is cut off, too long, or followed by something", "plan-packed")
    numbers = _Numbers(body, 0)
    size, source = numbers.upto(MAX_SIZE, "size"), numbers.upto(MAX_SIZE, "size of the source")
    level = numbers.upto(22, "level")
    packing = Packing(level, (numbers.next(), numbers.next(), numbers.next())) if level else None
    start = numbers.at
    if not size:
        raise BundleError("the plan makes an empty file", "plan-number")
    transfer = sum(part.length for recipe in _recipes(numbers, size, source) for part in recipe.segments)
    if numbers.at != len(body):
        raise BundleError("something follows the last window of the plan", "plan-trailing")
    return Plan(size, source, packing, transfer, body, start)


def write_plan(size: int, source: int, packing: Packing | None, recipes: Sequence[Recipe]) -> bytes:
    """The inverse of `read_plan`. Raises BundleError `plan-size` when the plan would be too long."""
    out = _Writer()
    out.put(size, source)
    out.put(packing.level, *packing.version) if packing else out.put(0)
    payload = prefix = copied = 0
    for recipe in recipes:
        out.put(recipe.lead, len(recipe.segments))
        for segment in recipe.segments:
            out.put(segment.length)
            out.signed(segment.offset - payload)
            payload = segment.offset + segment.length
            out.put(segment.plain, len(segment.prefix))
            for part in segment.prefix:
                out.signed(part.offset - prefix)
                out.put(part.length)
                prefix = part.offset + part.length
        out.put(len(recipe.items))
        for item in recipe.items:
            out.put(item.length << 2 | item.kind)
            if item.kind == COPY:
                out.signed(item.offset - copied)
                copied = item.offset + item.length
    data = MAGIC + zstd.compress(bytes(out.data), 19)
    if len(out.data) > MAX_PLAN or len(data) > MAX_PLAN:
        raise BundleError(f"a plan of {len(out.data)} bytes is too long", "plan-size")
    return data


class _Writer:
    def __init__(self) -> None:
        self.data = bytearray()

    def put(self, *values: int) -> None:
        for value in values:
            while value > 0x7F:
                self.data.append(value & 0x7F | 0x80)
                value >>= 7
            self.data.append(value)

    def signed(self, value: int) -> None:
        self.put(value << 1 if value >= 0 else ~value << 1 | 1)


class _Numbers:
    """A reader of the numbers in a plan."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self.at = data, at

    def next(self) -> int:
        value = shift = 0
        for byte in self._data[self.at : self.at + 8]:
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                if not byte and shift > 7:
                    raise BundleError("a number is longer than it need be", "plan-number")
                self.at += shift // 7
                return value
        raise BundleError("the plan ends within a number", "plan-number")

    def upto(self, limit: int, what: str, least: int = 0) -> int:
        value = self.next()
        if not least <= value <= limit:
            raise BundleError(f"{what}: {value} is not between {least} and {limit}", "plan-number")
        return value

    def signed(self) -> int:
        value = self.next()
        return ~(value >> 1) if value & 1 else value >> 1

    def place(self, last: int, length: int, limit: int, what: str) -> int:
        """An offset, given as the distance from `last`, from which `length` bytes end at or before `limit`."""
        offset = last + self.signed()
        if offset < 0 or offset + length > limit:
            raise BundleError(f"{what}: {length} bytes from {offset} on are not within {limit}", "plan-range")
        return offset


def _recipes(numbers: _Numbers, size: int, source: int) -> Iterator[Recipe]:
    payload = prefix = copied = 0
    for window in range(0, size, WINDOW):
        lead = numbers.upto(frames.MAX_FRAME, "lead")
        segments: list[Segment] = []
        for _ in range(numbers.upto(MAX_SEGMENTS, "segments")):
            segment, payload, prefix = _segment(numbers, payload, prefix, source)
            segments.append(segment)
        items: list[Item] = []
        for _ in range(numbers.upto(MAX_ITEMS, "items", 1)):
            value = numbers.next()
            kind, length = value & 3, value >> 2
            if kind > PACKED or not 0 < length <= (frames.MAX_PLAIN if kind == PACKED else WINDOW):
                raise BundleError(f"an item of kind {kind} and {length} bytes", "plan-item")
            offset = 0
            if kind == COPY:
                offset = numbers.place(copied, length, source, "copy")
                copied = offset + length
            items.append(Item(kind, length, offset))
        recipe = Recipe(lead, tuple(segments), tuple(items))
        _check_sums(recipe, min(WINDOW, size - window))
        yield recipe


def _segment(numbers: _Numbers, payload: int, prefix: int, source: int) -> tuple[Segment, int, int]:
    length = numbers.upto(REACH + _FRAME_OVERHEAD, "bytes of payload", 1)
    offset = numbers.place(payload, length, MAX_SIZE, "payload")
    plain = numbers.upto(REACH, "bytes of a segment", 1)
    if length > plain + _FRAME_OVERHEAD:
        raise BundleError(f"a segment of {plain} bytes takes {length} of payload", "plan-segment")
    ranges: list[Range] = []
    for _ in range(numbers.upto(MAX_RANGES, "ranges")):
        part = numbers.signed() + prefix
        size = numbers.upto(MAX_RANGE, "bytes of a range", 1)
        if part < 0 or part + size > source:
            raise BundleError(f"prefix: {size} bytes from {part} on are not within {source}", "plan-range")
        ranges.append(Range(part, size))
        prefix = part + size
    if sum(part.length for part in ranges) > REACH:
        raise BundleError("a prefix is too long", "plan-range")
    return Segment(offset, length, plain, tuple(ranges)), offset + length, prefix


def _check_sums(recipe: Recipe, length: int) -> None:
    """The segments hold what the items take, and without packed ones the items make what the window needs."""
    plain = sum(segment.plain for segment in recipe.segments)
    taken = sum(item.length for item in recipe.items if item.kind != COPY)
    if plain != taken or plain > MAX_WINDOW_PLAIN:
        raise BundleError(f"segments of {plain} bytes for items of {taken}", "plan-sum")
    whole = sum(item.length for item in recipe.items if item.kind != PACKED)
    if whole > length or (whole < length and all(item.kind != PACKED for item in recipe.items)):
        raise BundleError(f"items of {whole} bytes for a window of {length}", "plan-sum")


# --- making the new file ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Applied:
    """What was done: windows that were written, those that were there before, and bytes of payload that were read."""

    written: int
    kept: int
    fetched: int


def missing(target: Target, read_target: Read) -> list[int]:
    """The windows of the target that do not have the hash which they must have."""
    target.check()
    return [
        number
        for number, digest in enumerate(target.windows)
        if hashlib.sha256(read_target(number * WINDOW, _length(target.size, number))).digest() != digest
    ]


def apply(
    plan: Plan,
    target: Target,
    wanted: Sequence[int],
    read_source: Read,
    read_payload: Read,
    write: Write,
    done: Callable[[int], None] = lambda number: None,
) -> Applied:
    """Make the windows `wanted` (numbers; see `missing`); each is written once, whole, after its hash was compared.

    read_source(offset, length) and read_payload(offset, length) give exactly that many bytes, write(offset, data) puts
    them into the target; `done` hears of each window. Windows come in order, and the payload of a segment in
    ascending pieces. Raises BundleError, and what the functions raise; a window that was written stays written.
    """
    target.check()
    if plan.size != target.size:
        raise BundleError(f"the plan makes {plan.size} bytes, the target has {target.size}", "plan-target")
    if not plan.runs_here():
        raise BundleError(f"the plan needs zstd {plan.packing}, this is {zstd.zstd_version}", "plan-zstd")
    left = set(wanted)
    written = fetched = 0
    for number, recipe in enumerate(plan.recipes()):
        if number in left:
            data = _make(recipe, _length(plan.size, number), plan.packing, read_source, read_payload)
            if hashlib.sha256(data).digest() != target.windows[number]:
                raise BundleError(f"window {number} is not what the manifest says", "window-hash")
            write(number * WINDOW, data)
            del data  # its memory, before the next window is made
            written += 1
            fetched += sum(segment.length for segment in recipe.segments)
            done(number)
    return Applied(written, len(target.windows) - written, fetched)


def _length(size: int, number: int) -> int:
    return min(WINDOW, size - number * WINDOW)


def _make(recipe: Recipe, length: int, packing: Packing | None, read_source: Read, read_payload: Read) -> memoryview:
    """One window: exactly `length` bytes."""
    plain = _Plain(_unpacked(recipe.segments, packing is not None, read_source, read_payload))
    out = memoryview(bytearray(length))
    at = -recipe.lead  # in the window, where the next bytes lie
    for data in _pieces(recipe.items, packing, read_source, plain):
        first, last = max(at, 0), min(at + len(data), length)
        if first < last:
            out[first:last] = data[first - at : last - at]
        at += len(data)
        if at > length + frames.MAX_FRAME:
            break
    else:
        plain.close()
        if length <= at:
            return out
    raise BundleError(f"a window has {at} bytes or more instead of {length}", "window-size")


def _pieces(items: Sequence[Item], packing: Packing | None, read_source: Read, plain: _Plain) -> Iterator[memoryview]:
    """What the items make, in order: frames whole, all else in pieces."""
    for item in items:
        if item.kind == PACKED:
            if packing is None:
                raise BundleError("the plan packs frames and says no level", "plan-item")
            yield memoryview(frames.pack(plain.take(item.length), packing.level))
            continue
        for at in range(0, item.length, _PIECE):
            length = min(_PIECE, item.length - at)
            copied = item.kind == COPY
            yield memoryview(_exactly(read_source, item.offset + at, length) if copied else plain.take(length))


class _Plain:
    """What the segments unpack to, taken in portions."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._piece, self._at = pieces, b"", 0

    def take(self, length: int) -> bytearray:
        """The next bytes."""
        out, done = bytearray(length), 0
        while done < len(out):
            if self._at == len(self._piece):
                self._piece, self._at = next(self._pieces), 0
            part = memoryview(self._piece)[self._at : self._at + len(out) - done]
            out[done : done + len(part)] = part
            self._at += len(part)
            done += len(part)
        return out

    def close(self) -> None:
        """Read on to the end: what follows the last byte of a segment is checked there."""
        if self._at != len(self._piece) or next(self._pieces, None) is not None:
            raise BundleError("a segment has more than the window takes", "plan-sum")


def _unpacked(segments: Sequence[Segment], expand: bool, read_source: Read, read_payload: Read) -> Iterator[bytes]:
    for segment in segments:
        yield from _unpack(segment, _prefix(segment, expand, read_source), read_payload)


def _prefix(segment: Segment, expand: bool, read_source: Read) -> zstd.ZstdDict | None:
    """The prefix of a segment; there is no prefix below 8 bytes, which is the least that zstd takes."""
    prefix, limit = bytearray(), REACH - segment.plain
    for part in segment.prefix:
        data = _exactly(read_source, part.offset, part.length)
        for piece in frames.expand(data) if expand else (data,):
            prefix += piece
            if len(prefix) > limit:
                raise BundleError(f"the prefix of a segment has more than {limit} bytes", "prefix-size")
    return zstd.ZstdDict(prefix, is_raw=True) if len(prefix) >= 8 else None


def _unpack(segment: Segment, prefix: zstd.ZstdDict | None, read_payload: Read) -> Iterator[bytes]:
    """The segment in pieces; exactly as many bytes as the plan says, and nothing behind the frame."""
    limits: dict[int, int] = {zstd.DecompressionParameter.window_log_max: REACH.bit_length() - 1}
    unpacker = zstd.ZstdDecompressor(prefix.as_prefix if prefix else None, limits)
    left = segment.plain
    try:
        for at in range(0, segment.length, _PIECE):
            data = _exactly(read_payload, segment.offset + at, min(_PIECE, segment.length - at))
            if not at and zstd.get_frame_info(data[:18]).decompressed_size != segment.plain:
                raise BundleError("a segment's frame does not say the size that the plan says", "segment-size")
            while not unpacker.eof:
                piece = unpacker.decompress(data, min(_PIECE, left + 1))
                data = b""
                left -= len(piece)
                if left < 0:
                    raise BundleError("a segment has more than its frame says", "segment-size")
                if piece:
                    yield piece
                if unpacker.needs_input:
                    break
            if unpacker.eof and (unpacker.unused_data or at + _PIECE < segment.length):
                raise BundleError("something follows the frame of a segment", "segment-trailing")
    except zstd.ZstdError as error:
        raise BundleError(f"a segment cannot be unpacked: {error}", "segment-packed") from error
    if left or not unpacker.eof:
        raise BundleError("the frame of a segment is cut off", "segment-size")


def _exactly(read: Read, offset: int, length: int) -> bytes:
    data = read(offset, length)
    if len(data) != length:
        raise BundleError(f"{len(data)} bytes came instead of {length} from {offset} on", "short-read")
    return data
