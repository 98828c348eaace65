"""Reading logs: order, filters, the newest, damage, rotation, following."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import NotFoundError
from daemon.core import rpc
from daemon.doors.values import pack
from daemon.parts.service import logs
from daemon.parts.service.logs import Present, Query, Reader, Record, lines, lines_backward

BOOTS = ("aaaaaaaa", "bbbbbbbb")


def line(number: int, text: str = "", stream: str = "o", boot: str = BOOTS[0]) -> bytes:
    return f"{number} {number // 2} {boot} {stream} ".encode() + (text or f"line {number}").encode() + b"\n"


@pytest.fixture
def reader(tmp_path):
    """Units a (three files, one of them missing in between) and b."""
    for unit, number, content in (
        ("a", 3, line(10) + line(20, stream="e")),
        ("a", 5, line(30, boot=BOOTS[1]) + line(40, '{"level": "info", "n": [1]}', boot=BOOTS[1])),
        ("a", 6, line(50, "exited 1 0", "s", BOOTS[1])),
        ("b", 1, line(25) + line(45)),
    ):
        folder = tmp_path / unit
        folder.mkdir(exist_ok=True)
        (folder / f"{number:08}.log").write_bytes(content)
    (tmp_path / "a" / "notes.txt").write_bytes(b"not ours")
    return Reader(tmp_path)


def times(found):
    return [record.realtime for record in found]


def test_all_in_order(reader):
    assert times(reader.read(Query(("a",)))) == [10, 20, 30, 40, 50]
    assert times(reader.read(Query(("a", "b")))) == [10, 20, 25, 30, 40, 45, 50]
    assert times(reader.read(Query(("nothing",)))) == []
    assert reader.units() == ["a", "b"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"since": 20, "until": 40}, [20, 30]),
        ({"boot": BOOTS[1]}, [30, 40, 50]),
        ({"boot": "bbbbbbbb-cccc-dddd-eeee-ffffffffffff"}, [30, 40, 50]),
        ({"contains": "line 3"}, [30]),
        ({"streams": frozenset({"stderr"})}, [20]),
        ({"streams": frozenset({"stderr", "shim"})}, [20, 50]),
        ({"last": 2}, [40, 50]),
        ({"last": 0}, []),
        ({"last": 99}, [10, 20, 30, 40, 50]),
        ({"last": 2, "until": 40}, [20, 30]),
        ({"last": 1, "contains": "line 1"}, [10]),
    ],
)
def test_filters(reader, query, expected):
    assert times(reader.read(Query(("a",), **query))) == expected


def test_last_of_several_units(reader):
    assert times(reader.read(Query(("a", "b"), last=4))) == [30, 40, 45, 50]


def test_record(reader):
    records = list(reader.read(Query(("a",))))
    assert records[1] == Record("a", 20, 10, BOOTS[0], "stderr", "line 20")
    assert records[3].fields == {"level": "info", "n": [1]}
    assert records[3].as_json()["fields"] == {"level": "info", "n": [1]}
    assert records[4].stream == "shim"
    assert "fields" not in records[0].as_json()
    assert json.loads(json.dumps(records[0].as_json())) == records[0].as_json()


@pytest.mark.parametrize("text", ["{", "{}x", "[1]", "{" * 5000 + "}" * 5000, '{"a":', "{nope}"])
def test_text_that_is_no_object(text):
    assert Record("a", 1, 1, BOOTS[0], "stdout", text).fields is None


# case: D1
@pytest.mark.parametrize(
    "text",
    [
        '{"loss": NaN}',
        '{"loss": -Infinity}',
        '{"loss": 1e999}',
        '{"loss": 1' + "0" * 400 + "}",
        '{"a": 1, "a": 2}',
        '{"a": ' + "[" * 20 + "]" * 20 + "}",
        '{"a": ' + "[" * 900 + "]" * 900 + "}",
        '{"a": "\\ud800"}',
        '{"a": 1.5, "deep": [[[{"b": [1]}]]], "whole": 18446744073709551616}',
    ],
)
def test_no_line_of_a_service_hides_the_next(tmp_path, text):
    """Whatever it prints passes through an answer of the socket and of D-Bus, with its text as it is."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a/00000001.log").write_bytes(line(1, text) + line(2, "after"))
    items = [record.as_json() for record in Reader(tmp_path).read(Query(("a",)))]
    told = [rpc.decode_stream(rpc.encode_item(1, item), 1) for item in items]
    assert [item["text"] for _, item in told] == [text, "after"]
    for item in items:
        pack(lambda _, value: value, {}, item)


@pytest.mark.parametrize(
    "damage",
    [
        b"\0" * 4096,
        b"\xff\xfe\n",
        b"1 2 3 4 5\n",
        b"9 9 aaaaaaaa x text\n",
        b"x" * 200_000 + b"\n",
        b"\n\n",
        b"7 7 aaaaaaaa o",
    ],
)
@pytest.mark.parametrize("last", [None, 10])
def test_damage_is_skipped_and_counted(tmp_path, damage, last):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/00000001.log").write_bytes(line(1) + damage + b"\n" + line(2))
    reader = Reader(tmp_path)
    assert times(reader.read(Query(("a",), last=last))) == [1, 2]
    assert reader.damaged > 0


def test_not_utf8_and_cut_lines(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/00000001.log").write_bytes(b"1 1 aaaaaaaa O a\xff\0b\n2 1 aaaaaaaa o {}\n")
    cut, rest = Reader(tmp_path).read(Query(("a",)))
    assert (cut.text, cut.more, cut.fields) == ("a\\xff\0b", True, None)
    assert (rest.more, rest.fields) == (False, {})


@pytest.mark.parametrize("unit", ["", "..", "../a", "a/b", ".", "a\0", "x" * 65])
def test_units_are_names(reader, unit):
    with pytest.raises(NotFoundError) as caught:
        list(reader.read(Query((unit,))))
    assert caught.value.reason == "log-unit"


@given(
    st.lists(st.binary(max_size=40).filter(lambda b: b"\n" not in b), max_size=30), st.integers(1, 50), st.booleans()
)
def test_backward_is_forward_reversed(content, block, torn):
    data = b"".join(text + b"\n" for text in content)
    data = data + b"torn" if torn else data
    size, logs._BLOCK = logs._BLOCK, max(block, 45)
    try:
        forward = list(lines(io.BytesIO(data), None))
        assert list(lines_backward(io.BytesIO(data), len(data)))[::-1] == forward
        assert list(lines(io.BytesIO(data), len(data))) == forward
    finally:
        logs._BLOCK = size


def test_follow_across_rotation(reader, tmp_path, monkeypatch):
    """Each record once, in order: those there before, those written now, in parts, and in files that vanish at once."""
    monkeypatch.setattr(logs, "POLL", 0.01)
    folder = tmp_path / "a"

    async def scenario():
        found = []
        stream = reader.follow(Query(("a", "late"), last=1))

        async def collect():
            async for record in stream:
                found.append(record.realtime)

        async def wait_for(count):
            while len(found) < count:
                await asyncio.sleep(0.005)

        task = asyncio.create_task(collect())
        async with asyncio.timeout(20):
            await wait_for(1)
            with (folder / "00000006.log").open("ab", buffering=0) as file:
                file.write(line(60) + line(70)[:9])
                await wait_for(2)
                file.write(line(70)[9:] + line(80))
                await wait_for(4)
                (folder / "00000006.log").unlink()
                file.write(line(90))  # the file has no name any more, the follower has it open
                (folder / "00000007.log").write_bytes(line(100))
                (folder / "00000008.log").write_bytes(line(110))
            await wait_for(7)
            (tmp_path / "late").mkdir()
            (tmp_path / "late/00000001.log").write_bytes(line(120))
            await wait_for(8)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        return found

    assert asyncio.run(scenario()) == [50, 60, 70, 80, 90, 100, 110, 120]


def test_follow_filters(reader, tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "POLL", 0.01)

    async def scenario():
        async with asyncio.timeout(20):
            stream = reader.follow(Query(("a",), contains="wanted"))
            task = asyncio.create_task(anext(stream))
            with (tmp_path / "a/00000006.log").open("ab", buffering=0) as file:
                while not task.done():  # what is written before it follows is not its business
                    file.write(line(60) + line(70, "wanted"))
                    await asyncio.sleep(0.005)
            record = await task
            await stream.aclose()
            return record.realtime

    assert asyncio.run(scenario()) == 70


def test_memory_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(logs, "MAX_LAST", 100)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/00000001.log").write_bytes(b"".join(line(n) for n in range(10_000)))
    assert times(Reader(tmp_path).read(Query(("a",), last=10**9))) == list(range(9_900, 10_000))


@pytest.fixture
def set_clock(tmp_path):
    """Units a and b wrote in turn; the clock was years ahead for the first two lines, as `Present` knows."""
    ahead = 10**9
    for unit, rows in (("a", [(ahead + 1, 1), (13, 3)]), ("b", [(ahead + 2, 2), (14, 4)])):
        (tmp_path / unit).mkdir()
        text = "".join(f"{real} {boot} aaaaaaaa o {boot}\n" for real, boot in rows)
        (tmp_path / unit / "00000001.log").write_text(text)
    return Reader(tmp_path, Present("aaaaaaaa", 10))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, "1234"),
        ({"last": 2}, "34"),
        ({"since": 12}, "234"),
        ({"until": 13}, "12"),
        ({"last": 2, "until": 14}, "23"),
    ],
)
def test_lines_of_this_boot_are_found_by_the_clock_that_is_never_set(set_clock, query, expected):
    assert "".join(record.text for record in set_clock.read(Query(("a", "b"), **query))) == expected
    assert "".join(record.text for record in set_clock.read(Query(**query))) == expected  # no names: all


def test_following_all_units_finds_those_that_come(reader, tmp_path):
    async def main() -> list[str]:
        found = []
        async for record in reader.follow(Query(last=1)):
            found.append(record.unit)
            if len(found) == 1:
                (tmp_path / "new").mkdir()
                (tmp_path / "new" / "00000001.log").write_bytes(line(60) + line(61))
            if len(found) == 3:
                break
        return found

    assert asyncio.run(main()) == ["a", "new", "new"]
