import random

import pytest
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from common import toml
from common.bundle import frames, windows
from common.bundle.plan import Payload, make_plan, parse
from common.bundle.windows import (
    COPY,
    PACKED,
    PLAIN,
    REACH,
    WINDOW,
    BundleError,
    Item,
    Packing,
    Range,
    Recipe,
    Segment,
    Target,
    read_plan,
    write_plan,
)
from tests import hostpackages
from tests.plans import LEVEL, applied, image, planned, reader, text

BLOCKS = [text(number, 128 << 10) for number in range(40)]
NOISE = [random.Random(number).randbytes(128 << 10) for number in range(40)]


ZERO = bytes(128 << 10)


def edited(block: bytes, at: int = 5000) -> bytes:
    return block[:at] + b"a changed line" + block[at + 9 :]


def mixed() -> tuple[bytes, bytes]:
    """Two files of three windows each, which share much and differ in ways that a release differs from the last."""
    old = image([*BLOCKS, *NOISE[:30], *BLOCKS[:8]])
    changed = [BLOCKS[39], edited(BLOCKS[0]), *BLOCKS[1:20], text(99, 90_000), *BLOCKS[20:38]]
    new = image([*changed, *NOISE[1:33], *NOISE[30:0:-1]])
    return new, old


# --- making and applying ----------------------------------------------------------------------------------------------

CASES = {
    "same": (image(BLOCKS), image(BLOCKS)),
    "one block edited": (image([*BLOCKS[:9], edited(BLOCKS[9]), *BLOCKS[10:]]), image(BLOCKS)),
    "blocks moved": (image(BLOCKS[20:] + BLOCKS[:20]), image(BLOCKS)),
    "everything else": (image(BLOCKS[:20]), image(BLOCKS[20:])),
    "of nothing": (image(BLOCKS), None),
    "no frames, shifted": (b"x" * 999 + b"".join(NOISE), b"".join(NOISE)),
    "no frames in the source": (image(BLOCKS), b"".join(BLOCKS)),
    "no frames in the new file": (b"".join(BLOCKS), image(BLOCKS)),
    "other level": (image(BLOCKS[:6], 5), image(BLOCKS[:6], 3)),
    "mixed": mixed(),
    "tiny frames between": (
        image([edited(block) for block in BLOCKS]),
        image([one for b in BLOCKS for one in (b, ZERO)]),
    ),
    "small": (b"x", b"y"),
    "smaller than a frame's header": (frames.MAGIC, frames.MAGIC * 2),
    "zeros": (bytes(WINDOW + 1), bytes(5)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_plan_makes_the_new_file(name):
    new, old = CASES[name]
    plan, payload = planned(new, old)
    assert applied(plan, payload, old, Target.of(new)) == new
    read = read_plan(plan)
    assert (read.size, read.source, read.transfer) == (len(new), len(old or b""), len(payload))
    assert len(plan) + len(payload) < len(zstd.compress(new, LEVEL)) + 1000


def test_an_edit_costs_the_edit_and_not_its_block():
    for name, limit in (("same", 300), ("one block edited", 1000), ("blocks moved", 1500), ("no frames, shifted", 600)):
        plan, payload = planned(*CASES[name])
        assert len(plan) + len(payload) < limit, name


def test_what_frames_hide_is_used_although_the_level_changed():
    payload = Payload()
    new, old = image(BLOCKS[:6], 5), image(BLOCKS[:6], 3)
    plan = make_plan(parse(new), old, payload, 1, 12)
    assert len(plan) + payload.size < 1500 < len(old) // 100


def test_without_packing_a_plan_runs_with_any_zstd():
    new, old = CASES["one block edited"]
    payload = Payload()
    plan = make_plan(parse(new, packing=False), old, payload, 1, LEVEL)
    assert read_plan(plan).packing is None
    assert applied(plan, b"".join(payload.pieces), old, Target.of(new)) == new


def test_the_bytes_do_not_depend_on_threads():
    new, old = CASES["mixed"]
    assert planned(new, old, 1) == planned(new, old, 3)


def test_old_versions_share_their_payload():
    new, old = CASES["mixed"]
    payload = Payload()
    parsed = parse(new)
    plans = [make_plan(parsed, source, payload, 1, LEVEL) for source in (None, old, old, None)]
    assert plans[0] == plans[3]
    assert plans[1] == plans[2]
    together = b"".join(payload.pieces)
    assert len(together) == sum(len(planned(new, source)[1]) for source in (None, old))
    for plan, source in zip(plans, (None, old, old, None), strict=True):
        assert applied(plan, together, source, Target.of(new)) == new


blocks = st.lists(
    st.one_of(
        st.integers(0, 9).map(lambda number: BLOCKS[number]),
        st.integers(0, 9).map(lambda number: NOISE[number][:70_000]),
        st.tuples(st.integers(0, 9), st.integers(0, 100_000)).map(lambda pair: edited(BLOCKS[pair[0]], pair[1])),
        st.binary(min_size=1, max_size=200),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=25, deadline=None)
@given(blocks, blocks, st.booleans(), st.booleans(), st.integers(0, 60) | st.just(WINDOW - 100_000))
def test_any_file_is_made_of_any_other(new_blocks, old_blocks, pack_new, pack_old, shift):
    new = bytes(shift) + (image(new_blocks) if pack_new else b"".join(new_blocks))
    old = image(old_blocks) if pack_old else b"".join(old_blocks)
    plan, payload = planned(new, old)
    assert applied(plan, payload, old, Target.of(new)) == new


def test_windows_that_are_there_are_neither_made_nor_fetched():
    new, old = CASES["mixed"]
    plan, payload = planned(new, old)
    target = Target.of(new)
    assert len(target.windows) > 2
    reads: list[tuple[int, int]] = []
    out = bytearray(new)
    out[WINDOW + 7] ^= 1
    wanted = windows.missing(target, reader(bytes(out)))
    assert wanted == [1]

    def read(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return payload[offset : offset + length]

    def write(offset: int, data: memoryview) -> None:
        out[offset : offset + len(data)] = data

    done: list[int] = []
    result = windows.apply(read_plan(plan), target, wanted, reader(old), read, write, done.append)
    assert out == new
    assert done == [1]
    assert (result.written, result.kept) == (1, len(target.windows) - 1)
    assert result.fetched == sum(length for _, length in reads) < read_plan(plan).transfer


def test_what_was_written_before_a_failure_stays_and_is_not_made_again():
    new, old = CASES["mixed"]
    plan, payload = planned(new, old)
    target = Target.of(new)
    out = bytearray(len(new))

    def write(offset: int, data: memoryview) -> None:
        if offset >= 2 * WINDOW:
            raise OSError("the power is gone")
        out[offset : offset + len(data)] = data

    with pytest.raises(OSError, match="power"):
        windows.apply(read_plan(plan), target, range(len(target.windows)), reader(old), reader(payload), write)
    assert windows.missing(target, reader(bytes(out))) == list(range(2, len(target.windows)))
    assert applied(plan, payload, old, target, bytes(out)) == new


# --- what is wrong is refused -----------------------------------------------------------------------------------------


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_flipped_bit_gets_into_the_target():
    """1000 single bits of plan, payload and source; whatever is written has the hash of its window."""
    old = image(BLOCKS[:12])
    new = image([edited(BLOCKS[3]), text(7, 50_000), *BLOCKS[5:12], NOISE[1][:9000]])
    plan, payload = planned(new, old)
    target = Target.of(new)
    assert len(target.windows) == 1
    draw = random.Random(1)
    refused = 0
    for number in range(1000):
        parts = [plan, payload, old]
        which = number % 3
        parts[which] = flipped(parts[which], draw.randrange(8 * len(parts[which])))
        try:
            assert applied(parts[0], parts[1], parts[2], target) == new
        except BundleError:
            refused += 1
    assert refused > 600  # a bit of the source may not matter


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 20, -1])
def test_a_plan_that_is_cut_off_is_refused(cut):
    plan, _ = planned(*CASES["one block edited"])
    with pytest.raises(BundleError):
        read_plan(plan[:cut])
    with pytest.raises(BundleError):
        read_plan(plan + b"x")


def packed(*numbers: int) -> bytes:
    """A plan of numbers that are written as they are."""
    out = bytearray()
    for number in numbers:
        while number > 0x7F:
            out.append(number & 0x7F | 0x80)
            number >>= 7
        out.append(number)
    return windows.MAGIC + zstd.compress(bytes(out))


ONE_ITEM = 400 << 2 | PLAIN
BAD_PLANS = {
    "plan-format": b"MIXPLAN2" + packed(400)[8:],
    "plan-packed": windows.MAGIC + b"\x28\xb5\x2f\xfd",
    "empty": packed(0, 0, 0),
    "huge": packed(windows.MAX_SIZE + 1, 0, 0),
    "no windows": packed(400, 0, 0),
    "trailing": packed(400, 0, 0, 0, 1, 9, 0, 400, 0, 1, ONE_ITEM, 5),
    "level": packed(400, 0, 23, 1, 5, 7),
    "lead": packed(400, 0, 0, frames.MAX_FRAME + 1),
    "segments": packed(400, 0, 0, 0, windows.MAX_SEGMENTS + 1),
    "payload length": packed(400, 0, 0, 0, 1, REACH * 2, 0, 400, 0, 1, ONE_ITEM),
    "payload before the first": packed(400, 0, 0, 0, 1, 9, 1, 400, 0, 1, ONE_ITEM),
    "payload far out": packed(400, 0, 0, 0, 1, 9, windows.MAX_SIZE * 2, 400, 0, 1, ONE_ITEM),
    "segment too long": packed(400, 0, 0, 0, 1, 9, 0, REACH + 1, 0, 1, ONE_ITEM),
    "segment packs to more": packed(400, 0, 0, 0, 1, 70_000, 0, 400, 0, 1, ONE_ITEM),
    "range without a source": packed(400, 0, 0, 0, 1, 9, 0, 400, 1, 0, 1, 1, ONE_ITEM),
    "range behind the source": packed(400, 99, 0, 0, 1, 9, 0, 400, 1, 190, 5, 1, ONE_ITEM),
    "range before the source": packed(400, 99, 0, 0, 1, 9, 0, 400, 1, 1, 5, 1, ONE_ITEM),
    "range of nothing": packed(400, 99, 0, 0, 1, 9, 0, 400, 1, 0, 0, 1, ONE_ITEM),
    "prefix too long": packed(400, 1 << 30, 0, 0, 1, 9, 0, 400, 5, *((0, 2 << 20) * 5), 1, ONE_ITEM),
    "no items": packed(400, 0, 0, 0, 0, 0),
    "kind": packed(400, 0, 0, 0, 0, 1, 400 << 2 | 3),
    "item of nothing": packed(400, 0, 0, 0, 0, 1, PLAIN),
    "packed item": packed(400, 0, 3, 1, 5, 7, 0, 0, 1, (2 << 20) << 2 | PACKED),
    "copy outside": packed(400, 399, 0, 0, 0, 1, 400 << 2 | COPY, 0),
    "items of more than the segments": packed(400, 0, 0, 0, 1, 9, 0, 399, 0, 1, ONE_ITEM),
    "items of less than the window": packed(401, 0, 0, 0, 1, 9, 0, 400, 0, 1, ONE_ITEM),
    "items of more than the window": packed(399, 0, 0, 0, 1, 9, 0, 400, 0, 1, ONE_ITEM),
    "number too long": windows.MAGIC + zstd.compress(b"\x81" * 9),
    "number with empty end": windows.MAGIC + zstd.compress(b"\x81\0" * 9),
    "bomb": windows.MAGIC + zstd.compress(bytes(64 << 20)),
    "a plan too long": windows.MAGIC + random.Random(0).randbytes(windows.MAX_PLAN),
}


@pytest.mark.parametrize("name", BAD_PLANS)
def test_bad_plans_are_refused(name):
    with pytest.raises(BundleError):
        read_plan(BAD_PLANS[name])


def test_the_numbers_of_the_bad_plans_are_bad_for_one_reason_only():
    assert read_plan(packed(400, 0, 0, 0, 1, 9, 0, 400, 0, 1, ONE_ITEM)).transfer == 9


def make(segment: bytes, plain: int, old: bytes = b"", prefix: tuple[Range, ...] = (), size: int = 0, **other) -> bytes:
    """What a window of one segment is, if the segment says that it is `plain` bytes."""
    items = other.get("items", (Item(PLAIN, plain),))
    recipe = Recipe(other.get("lead", 0), (Segment(0, len(segment), plain, prefix),), items)
    plan = write_plan(size or plain, len(old), other.get("packing"), [recipe])
    out: list[bytes] = []
    target = Target(size or plain, (other.get("digest", bytes(32)),))
    windows.apply(read_plan(plan), target, [0], reader(old), reader(segment), lambda _, data: out.append(bytes(data)))
    return b"".join(out)


def reason(*args, **kwargs) -> str:
    with pytest.raises(BundleError) as caught:
        make(*args, **kwargs)
    return caught.value.reason


def unsized(data: bytes) -> bytes:
    return zstd.compress(data, options={zstd.CompressionParameter.content_size_flag: 0})


def test_segments_that_are_not_what_they_say():
    data = text(1, 5000)
    frame = zstd.compress(data)
    assert reason(frame, 5000) == "window-hash"  # sound but for the hash
    assert reason(frame, 4999) == "segment-size"
    assert reason(frame, 5001) == "segment-size"
    assert reason(unsized(data), 5000) == "segment-size"
    assert reason(frame[:-1], 5000) in ("segment-size", "segment-packed")
    assert reason(frame + b"x", 5000) == "segment-trailing"
    assert reason(frame + frame, 5000) == "segment-trailing"
    assert reason(b"nonsense" * 9, 5000) == "segment-packed"
    far = zstd.compress(bytes(5000), options={zstd.CompressionParameter.window_log: 27})
    assert reason(far, 5000) == "window-hash"  # says its size: needs no more memory than that
    bomb = zstd.compress(bytes(1 << 30))
    assert reason(bomb, 5000) == "segment-size"


def test_a_frame_that_makes_more_than_it_says():
    """The header of a frame of 5000 bytes before the blocks of one of 6000."""
    short, long = zstd.compress(bytes(5000)), zstd.compress(bytes(6000))
    head = next(at for at in range(4, 18) if short[at] != long[at])
    forged = long[:head] + short[head : head + 2] + long[head + 2 :]
    assert zstd.get_frame_info(forged).decompressed_size == 5000
    assert reason(forged, 5000) in ("segment-size", "segment-packed")


def test_a_prefix_that_unpacks_to_more_than_allowed():
    old = b"".join(frames.pack(bytes(1 << 20), 3) for _ in range(20))
    frame = zstd.compress(text(1, 5000))
    packing = Packing(3)
    assert reason(frame, 5000, old, (Range(0, len(old)),), packing=packing) == "prefix-size"
    assert reason(frame, 5000, old, (Range(0, len(old)),)) != "prefix-size"


def test_short_reads_are_refused():
    frame = zstd.compress(text(1, 5000))
    recipe = Recipe(0, (Segment(0, len(frame) + 1, 5000, ()),), (Item(PLAIN, 5000),))
    plan = read_plan(write_plan(5000, 0, None, [recipe]))
    with pytest.raises(BundleError) as caught:
        windows.apply(plan, Target(5000, (bytes(32),)), [0], reader(b""), reader(frame), lambda *_: None)
    assert caught.value.reason == "short-read"


def test_windows_of_the_wrong_size():
    block = text(1, 5000)
    frame = zstd.compress(block)
    items, packing = (Item(PACKED, 5000),), Packing(3)
    size = len(frames.pack(block, 3))
    assert reason(frame, 5000, size=size, items=items, packing=packing) == "window-hash"
    assert reason(frame, 5000, size=size + 1, items=items, packing=packing) == "window-size"
    assert reason(frame, 5000, size=size, items=items, packing=packing, lead=1) == "window-size"
    assert reason(frame, 5000, size=size, items=items) == "plan-item"
    many = zstd.compress(NOISE[0] * 50)
    each = tuple(Item(PACKED, 128 << 10) for _ in range(50))
    assert reason(many, len(NOISE[0]) * 50, size=100, items=each, packing=packing) == "window-size"


def test_another_zstd_is_told_before_anything_is_read():
    frame = zstd.compress(text(1, 5000))
    packing = Packing(3, (1, 5, 8) if zstd.zstd_version_info != (1, 5, 8) else (1, 5, 9))
    assert reason(frame, 5000, packing=packing) == "plan-zstd"


def test_host_and_image_have_the_same_zstd():
    """Otherwise no device would take a plan that packs frames."""
    pins = (hostpackages.ROOT / "ci" / "requirements.txt").read_text().split()
    sources = toml.loads((hostpackages.ROOT / "sources.lock").read_text())["source"]
    (source,) = [one for one in sources if one["name"] == "py-backports-zstd"]
    assert source["pip"] in pins


def test_a_target_that_is_not_the_plans():
    plan = read_plan(planned(b"x" * 100, None)[0])
    for target, reason in (
        (Target(101, (bytes(32),)), "plan-target"),
        (Target(100, ()), "target-windows"),
        (Target(100, (b"short",)), "target-windows"),
    ):
        with pytest.raises(BundleError) as caught:
            windows.apply(plan, target, [0], reader(b""), reader(b""), lambda *_: None)
        assert caught.value.reason == reason


# --- frames -----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.binary(max_size=300) | st.binary(max_size=300).map(zstd.compress) | st.just(frames.MAGIC), max_size=8)
)
def test_runs_cover_every_byte_once(pieces):
    data = b"".join(pieces)
    at = 0
    for run in frames.runs(data):
        assert run.offset == at
        assert run.length > 0
        at += run.length
    assert at == len(data)


def test_magic_numbers_without_a_frame_cost_little():
    data = frames.MAGIC * 500_000
    assert list(frames.runs(data)) == [frames.Run(0, len(data), None)]
