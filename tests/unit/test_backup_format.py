"""A backup's two layers: the sealed container and the strict archive in it."""

from __future__ import annotations

import contextlib
import io
import random
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import MixosError
from daemon.parts.backup import archive, sealed
from daemon.parts.backup.archive import Entry, decode, encode
from daemon.parts.backup.sealed import CHUNK, HEADER, TAG, seal, unseal

SECRET = "correct horse battery"
QUICK = 10  # log2 of scrypt's cost


def make(data: bytes, secret: str | None = SECRET) -> bytes:
    return b"".join(seal([data], secret, QUICK))


def opened(data: bytes, secret: str | None = SECRET) -> bytes:
    return b"".join(unseal(io.BytesIO(data), secret))


def reason(data: bytes, secret: str | None = SECRET) -> str:
    with pytest.raises(MixosError) as caught:
        opened(data, secret)
    return caught.value.reason


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 11, CHUNK, CHUNK + 1, 3 * CHUNK, 5 * CHUNK + 77])
@pytest.mark.parametrize("secret", [SECRET, None])
def test_what_was_sealed_comes_back(size, secret):
    data = noise(size)
    assert opened(make(data, secret), secret) == data


def test_a_content_that_fills_its_last_chunk_exactly():
    """The boundary case of the final flag: the compressed stream is a whole number of chunks."""
    for size in range(2 * CHUNK - 80, 2 * CHUNK):
        data = noise(size)
        whole = make(data)
        if (len(whole) - HEADER) % (CHUNK + TAG) == 0:
            assert opened(whole) == data
            assert reason(whole[: -(CHUNK + TAG)]) == "backup-truncated"
            return
    raise AssertionError("no size hit the boundary")


@pytest.mark.parametrize("secret", [SECRET, None])
def test_truncation_is_found_wherever_it_is(secret):
    whole = make(noise(3 * CHUNK), secret)
    for keep in [HEADER + number * (CHUNK + TAG) for number in range(4)]:
        assert reason(whole[:keep], secret) == "backup-truncated"
    for keep in (1, 9, 47, HEADER + 5, HEADER + 16, len(whole) - 1):
        assert reason(whole[:keep], secret) in ("backup-truncated", "backup-damaged")
    assert reason(b"", secret) == "backup-format"


@pytest.mark.parametrize("secret", [SECRET, None])
def test_every_flipped_byte_is_found(secret):
    whole = make(b"hello" * 100, secret)
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0x10
        assert reason(bytes(damaged), secret).startswith("backup-"), place


def test_chunks_cannot_be_swapped_repeated_or_taken_from_another():
    whole, other = make(noise(4 * CHUNK)), make(noise(4 * CHUNK + 1))
    size = CHUNK + TAG
    chunks = [whole[HEADER + n * size : HEADER + (n + 1) * size] for n in range(5)]
    foreign = other[HEADER + size : HEADER + 2 * size]
    for order in ([1, 0, 2, 3, 4], [0, 0, 1, 2, 3, 4], [0, 2, 3, 4]):
        assert reason(whole[:HEADER] + b"".join(chunks[n] for n in order)) == "backup-damaged"
    assert reason(whole[:HEADER] + chunks[0] + foreign + b"".join(chunks[2:])) == "backup-damaged"
    assert reason(whole + b"x") == "backup-damaged"
    assert reason(whole + whole[HEADER:]) == "backup-damaged"


def test_passphrases():
    whole = make(b"x")
    assert reason(whole, "another passphrase") == "backup-passphrase"
    assert reason(whole, None) == "backup-passphrase-needed"
    assert reason(make(b"x", None), SECRET) == "backup-not-encrypted"
    with pytest.raises(MixosError) as caught:
        make(b"x", "short")
    assert caught.value.reason == "backup-passphrase-weak"
    assert SECRET.encode() not in whole
    assert make(b"x")[16:32] != whole[16:32]  # a salt is used once


def test_header_bytes():
    whole = make(b"", None)
    assert whole[:16] == b"MIXOSBK\n" + bytes([0, 1, 0, 1, 0, 0, 0, 0])
    assert make(b"")[8:16] == bytes([0, 1, 1, 1, QUICK, 8, 0, 1])


@pytest.mark.parametrize(
    ("place", "value", "wanted"),
    [
        (9, 2, "backup-too-new"),
        (8, 200, "backup-too-new"),
        (9, 0, "backup-format"),
        (10, 2, "backup-format"),
        (11, 9, "backup-format"),
        (12, 30, "backup-format"),  # scrypt with 1 TiB
        (13, 255, "backup-format"),
        (14, 255, "backup-format"),
        (0, 0, "backup-format"),
        (16, 0, "backup-passphrase"),
    ],
)
def test_headers_that_are_refused(place, value, wanted):
    whole = bytearray(make(b"x"))
    whole[place] = value
    assert reason(bytes(whole)) == wanted


def test_a_bomb_is_unpacked_in_small_pieces():
    pieces = unseal(io.BytesIO(make(bytes(50 << 20))), SECRET)
    assert max(len(piece) for piece in pieces) <= 256 << 10


def test_what_follows_the_compressed_stream_is_found(monkeypatch):
    monkeypatch.setattr(sealed, "_packed", lambda plain: iter([zlib.compress(b"a") + b"more"]))
    assert reason(make(b"")) == "backup-damaged"
    monkeypatch.setattr(sealed, "_packed", lambda plain: iter([zlib.compress(b"a" * 100)[:-5]]))
    assert reason(make(b"")) == "backup-damaged"


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=300))
def test_garbage_is_no_container(data):
    assert reason(data, None).startswith("backup-")
    assert reason(make(b"", None)[:HEADER] + data, None).startswith("backup-")


# -- the archive --------------------------------------------------------------------------------

FILE = Entry("etc/hostname", "file", 0o644, size=5, mtime=1)


def packed(*items: tuple[Entry, bytes]) -> bytes:
    return b"".join(archive.write((entry, iter([data])) for entry, data in items))


def taken(data: bytes, **options: int) -> list[tuple[Entry, bytes]]:
    return [(entry, b"".join(content)) for entry, content in archive.read(iter([data]), **options)]


def why(data: bytes, **options: int) -> str:
    with pytest.raises(MixosError) as caught:
        taken(data, **options)
    return caught.value.reason


ITEMS = [
    (Entry("var/lib/web", "folder", 0o750, 33, 34), b""),
    (Entry("var/lib/web/" + "d" * 60 + "/" + "n" * 90, "file", 0o1600, 1, 2, 700, 1_700_000_000), b"z" * 700),
    (Entry("var/lib/web/link", "link", 0o777, target="../web/x"), b""),
    (Entry("var/lib/web/f\udcffle", "file", 0o600, size=512), b"y" * 512),
]


def test_the_archive_round_trips_and_tar_reads_it():
    data = packed(*ITEMS)
    assert taken(data) == ITEMS
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        members = tar.getmembers()
        assert [one.name for one in members] == [entry.path for entry, _ in ITEMS]
        assert [one.mode for one in members] == [0o750, 0o1600, 0o777, 0o600]
        assert tar.extractfile(members[1]).read() == b"z" * 700  # type: ignore[union-attr]
        assert members[2].linkname == "../web/x"
        assert (members[0].uid, members[0].gid) == (33, 34)


# case: D9
@pytest.mark.parametrize("size", [93, 94, 99, 100, 101, 120, 255, 985, 986, 1000, 1023])
def test_long_names_are_kept_and_tar_reads_them(size):
    long = [
        (Entry("n" * size, "file", 0o644, size=1), b"z"),
        (Entry("d" * size, "folder", 0o755), b""),
        (Entry("l" * size, "link", 0o777, target="/" + "t" * size), b""),
        (Entry("short", "link", 0o777, target="é\udcff\n" * (size // 4)), b""),
    ]
    data = packed(*long, *ITEMS)
    assert taken(data) == [*long, *ITEMS]
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        assert [one.name for one in tar.getmembers()] == [entry.path for entry, _ in (*long, *ITEMS)]
        assert tar.getmembers()[2].linkname == "/" + "t" * size


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2047), st.binary(min_size=1, max_size=12))
def test_only_our_own_extended_headers_are_read(place, some):
    data = bytearray(packed((Entry("n" * 200, "link", 0o777, target="t" * 200), b"")))
    before = bytes(data)
    data[place : place + len(some)] = some
    if bytes(data) == before:
        return
    with contextlib.suppress(sealed.BackupError):
        entries = taken(bytes(data))
        assert packed(*entries) == bytes(data)


HOLES = [
    Entry("all", "file", 0o644, length=archive.MAX_LENGTH),
    Entry("n" * 200, "file", 0o644, size=7, length=1 << 40, parts=((0, 3), (3, 1), (1 << 39, 3))),
    Entry("many", "file", 0o644, size=1024, length=1 << 43, parts=tuple(((1 << 42) + 2 * n, 1) for n in range(1024))),
]


# case: D10
def test_holes_are_not_in_the_archive():
    items = [(entry, bytes(range(256)) * (entry.size // 256) + bytes(entry.size % 256)) for entry in HOLES]
    data = packed(*items, *ITEMS)
    assert taken(data) == [*items, *ITEMS]
    assert len(data) < 100_000
    entry = HOLES[1]
    assert list(entry.placed([b"ab", b"cde", b"fg"])) == [
        (0, b"ab"),
        (2, b"c"),
        (3, b"d"),
        (1 << 39, b"e"),
        ((1 << 39) + 1, b"fg"),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"parts": ((0, 8),)},
        {"parts": ((3, 4), (0, 3))},
        {"parts": ((0, 4), (3, 3))},
        {"parts": ((0, 7), (9, 0))},
        {"parts": ((0, 3), (8, 4))},
        {"parts": ((-1, 7),)},
        {"length": archive.MAX_LENGTH + 1},
        {"kind": "folder"},
    ],
)
def test_holes_that_no_file_has(changes):
    good = Entry("a", "file", 0o644, size=7, length=10, parts=((0, 7),))
    assert taken(packed((good, b"1234567"))) == [(good, b"1234567")]
    with pytest.raises(sealed.BackupError):
        encode(replace(good, **changes))


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1535), st.binary(min_size=1, max_size=12))
def test_only_our_own_words_about_holes_are_read(place, some):
    data = bytearray(packed((Entry("a", "file", 0o644, size=3, length=1 << 20, parts=((0, 1), (9, 2))), b"abc")))
    before = bytes(data)
    data[place : place + len(some)] = some
    if bytes(data) != before:
        with contextlib.suppress(sealed.BackupError):
            assert packed(*taken(bytes(data))) == bytes(data)


def test_set_uid_is_not_kept():
    assert taken(packed((Entry("a", "file", 0o6755), b"")))[0][0].mode == 0o755


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "a/.", "..", ""])
def test_names_that_lead_elsewhere(path):
    assert why(packed((Entry(path, "file", 0o644), b""))) == "backup-name"


@pytest.mark.parametrize("code", [b"1", b"3", b"4", b"6", b"7", b"x", b"g", b"L", b"\0"])
def test_devices_hard_links_and_extensions(code):
    block = bytearray(encode(Entry("a", "file", 0o644)))
    block[156:157] = code
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    assert why(bytes(block) + bytes(1024)) == "backup-tar"


def test_names_twice_and_below_files():
    one, two = Entry("a", "file", 0o644), Entry("a/b", "file", 0o644)
    link, folder = Entry("a", "link", 0o777, target="c"), Entry("a", "folder", 0o755)
    assert why(packed((one, b""), (one, b""))) == "backup-name"
    assert why(packed((one, b""), (two, b""))) == "backup-name"
    assert why(packed((link, b""), (two, b""))) == "backup-name"
    assert why(packed((two, b""), (one, b""))) == "backup-name"
    assert why(packed((folder, b""), (folder, b""))) == "backup-name"
    assert len(taken(packed((two, b""), (folder, b"")))) == 2


def test_contradictions_and_limits(monkeypatch):
    assert why(packed((Entry("a", "folder", 0o755, size=3), b"xyz"))) == "backup-tar"
    assert why(packed((Entry("a", "file", 0o644, target="b"), b""))) == "backup-tar"
    assert why(packed((Entry("a", "link", 0o777), b""))) == "backup-tar"
    assert why(packed((FILE, b"hello")), limit=4) == "backup-too-big"
    whole = packed((FILE, b"hello"))
    assert why(whole[:-1]) == "backup-truncated"
    assert why(whole + b"x") == "backup-tar"
    assert why(whole[:520] + b"x" + whole[521:]) == "backup-tar"
    with pytest.raises(MixosError) as caught:
        packed((FILE, b"hell"))
    assert (caught.value.reason, caught.value.retryable) == ("backup-changed", True)
    with pytest.raises(MixosError) as caught:
        packed((FILE, b"hello!"))
    assert caught.value.reason == "backup-changed"
    monkeypatch.setattr(archive, "MAX_ENTRIES", 2)
    with pytest.raises(MixosError) as caught:
        packed(*ITEMS)
    assert caught.value.reason == "backup-too-big"
    for entry in (Entry("n" * 1025, "file", 0o644), Entry("a", "link", 0o777, target="n" * 1025)):
        with pytest.raises(MixosError) as caught:
            encode(entry)
        assert caught.value.reason == "backup-name"
    monkeypatch.setattr(archive, "MAX_ENTRIES", 50_000)
    monkeypatch.setattr(archive, "MAX_NAMES", 100)
    assert why(packed((Entry("a/" * 20 + "a", "file", 0o644), b""))) == "backup-too-big"


@settings(max_examples=300, deadline=None)
@given(st.binary(min_size=512, max_size=512), st.integers(0, 500), st.binary(max_size=12))
def test_only_our_own_headers_are_read(noisy, place, some):
    """A header that is accepted says exactly what `encode` would write."""
    block = encode(Entry("var/lib/x", "file", 0o644, 1, 2, 3, 4))
    for data in (noisy, (block[:place] + some + block[place + len(some) :])[:512]):
        try:
            entry = decode(data)
        except MixosError as error:
            assert error.reason in ("backup-tar", "backup-name")  # noqa: PT017  # it may also fit
        else:
            assert encode(entry) == data
            assert min(entry.uid, entry.gid, entry.size, entry.mtime, entry.mode) >= 0


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damaged_archives_raise_what_they_should(data):
    whole = bytearray(packed(*ITEMS))
    for _ in range(data.draw(st.integers(1, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(whole), 333):
            yield bytes(whole[start : start + 333])

    try:
        for entry, content in archive.read(pieces()):
            assert sum(map(len, content)) == entry.size
    except MixosError as error:
        assert error.reason.startswith("backup-")  # noqa: PT017  # it may also fit
