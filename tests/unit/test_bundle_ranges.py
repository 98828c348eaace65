"""Ranges of a bundle between two processes: what is asked is answered, and nothing else is believed."""

import json
import os
import socket
import threading

import pytest

from common.bundle.ranges import ANSWER, DATA, FAILED, MAX_RANGE, QUESTION, Ranges, answer
from common.errors import BundleError, MixosError

DATA_OF = bytes(range(256)) * 9000  # more than two ranges


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def asking(channel, patience=5.0):
    return Ranges(channel.fileno(), channel.fileno(), patience)


def answering(channel, read):
    thread = threading.Thread(target=answer, args=(channel.fileno(), channel.fileno(), read))
    thread.start()
    return thread


def test_ranges_come_whole(ends):
    thread = answering(ends[1], lambda offset, length: DATA_OF[offset : offset + length])
    ranges = asking(ends[0])
    assert ranges.read(0, len(DATA_OF)) == DATA_OF
    assert ranges.read(7, 300) == DATA_OF[7:307]
    assert ranges.read(len(DATA_OF) - 5, 100) == DATA_OF[-5:]
    assert ranges.read(len(DATA_OF) + 5, 100) == b""
    assert ranges.fetched == len(DATA_OF) + 305
    ends[0].shutdown(socket.SHUT_WR)
    thread.join()


def test_why_it_fails_is_told_and_the_next_question_may_succeed(ends):
    failing = [MixosError("the server says 503", reason="source-http", hint="later", retryable=True)]

    def read(offset, length):
        if failing:
            raise failing.pop()
        return b"x" * length

    thread = answering(ends[1], read)
    ranges = asking(ends[0])
    with pytest.raises(MixosError) as caught:
        ranges.read(0, 3)
    assert (caught.value.message, caught.value.reason) == ("the server says 503", "source-http")
    assert caught.value.retryable
    assert ranges.read(0, 3) == b"xxx"
    ends[0].shutdown(socket.SHUT_WR)
    thread.join()


@pytest.mark.parametrize(
    "said",
    [
        ANSWER.pack(DATA, 4) + b"long",
        ANSWER.pack(DATA, MAX_RANGE + 1),
        ANSWER.pack(7, 3) + b"abc",
        ANSWER.pack(FAILED, 1 << 30),
        ANSWER.pack(FAILED, 2) + b"no",
        ANSWER.pack(FAILED, 2) + b"[]",
        ANSWER.pack(FAILED, 2) + b"{}",
        ANSWER.pack(FAILED, 4000) + b"[" * 4000,
    ],
)
def test_an_answer_that_is_none_is_refused(ends, said):
    ends[1].sendall(said)
    with pytest.raises(MixosError) as caught:
        asking(ends[0]).read(0, 3)
    assert caught.value.reason == "source-protocol"


@pytest.mark.parametrize("said", [b"", ANSWER.pack(DATA, 3), ANSWER.pack(DATA, 3) + b"ab"])
def test_an_end_that_closes_is_gone(ends, said):
    ends[1].sendall(said)
    ends[1].shutdown(socket.SHUT_WR)
    with pytest.raises(BundleError) as caught:
        asking(ends[0]).read(0, 3)
    assert (caught.value.reason, caught.value.retryable) == ("source-gone", True)


def test_an_end_that_is_silent_is_not_waited_for(ends):
    with pytest.raises(BundleError) as caught:
        asking(ends[0], patience=0.05).read(0, 3)
    assert caught.value.reason == "source-gone"


def test_what_is_told_cannot_steer_a_terminal(ends):
    words = json.dumps({"message": "\x1b[2J\nhello", "reason": "a\x1bb", "retryable": False}).encode()
    ends[1].sendall(ANSWER.pack(FAILED, len(words)) + words)
    with pytest.raises(MixosError) as caught:
        asking(ends[0]).read(0, 3)
    assert "\x1b" not in caught.value.message + caught.value.reason
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, MAX_RANGE + 1), ((1 << 64) - 1, 1)])
def test_a_question_for_too_much_ends_it(offset, length):
    there, here = os.pipe()
    os.write(here, QUESTION.pack(offset, length))
    with pytest.raises(BundleError) as caught:
        answer(there, here, lambda offset, count: os.pread(0, count, offset))
    assert caught.value.reason == "source-protocol"
    os.close(there)
    os.close(here)
