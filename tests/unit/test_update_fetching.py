"""The daemon's side of `mixos-fetch`: a socket that somebody answers on, for as long as it is needed."""

import asyncio
import os
import random
from pathlib import Path

import pytest

from common.bundle.ranges import Files, Ranges
from common.errors import MixosError
from daemon.parts.update.fetching import fetching
from tests import webserver
from tests.fetching import program
from tests.webserver import Web

FILE = "/mixos-1.1.mixb"


def asked(kind, told, ask, failed=lambda message, seconds: None):
    """What `ask` finds when it is given the socket."""

    async def life():
        async with asyncio.timeout(60), fetching(kind, told, failed, program()) as channel:
            return await asyncio.to_thread(ask, channel)

    return asyncio.run(life())


def test_ranges_and_files_are_had_through_it():
    data = random.Random(1).randbytes(300_000)
    web, heard = Web({FILE: data}), []
    with web.serving() as url:
        web.faults = [webserver.faults(random.Random(1))["busy"]]
        told = {"url": url + FILE, "headers": {"Authorization": "Bearer x"}, "rate": 10_000_000}
        got = asked("ranges", told, lambda one: Ranges(one, one).read(5, 200_000), lambda *words: heard.append(words))
        assert got == data[5:200_005]
        assert len(heard) == 1
        assert 0 < heard[0][1] < 5
        assert web.asked[-1].fields["authorization"] == "Bearer x"
        assert asked("files", {"url": url}, lambda one: Files(one, one).get(FILE[1:], 300_000)) == data


def test_what_it_refuses_is_told_at_once():
    with pytest.raises(MixosError) as caught:
        asked("ranges", {"url": "ftp://example.org/"}, lambda one: None)
    assert caught.value.reason == "source-order"


def test_who_asks_sees_that_it_has_ended():
    def ask(one):
        os.write(one, bytes(12))  # for no byte
        Ranges(one, one).read(0, 1)

    with pytest.raises(MixosError) as caught:
        asked("ranges", {"url": "http://127.0.0.1:9/"}, ask)
    assert caught.value.reason == "source-gone"


def test_it_ends_with_who_needed_it():
    web = Web({FILE: bytes(100)})
    with web.serving() as url:

        def ask(one):
            assert Ranges(one, one).read(0, 10) == bytes(10)
            return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]

        before = asked("ranges", {"url": url + FILE}, ask)
    assert before
    for pid in before:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
