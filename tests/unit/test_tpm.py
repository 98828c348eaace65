"""The downgrade floor in a TPM (a software one), and the commands that keep it there."""

from __future__ import annotations

import json
import os
import socket
import struct
import sys
import threading
from contextlib import suppress

import pytest

from buildsys.run import run
from common.errors import MixosError, TpmError
from daemon import floor
from daemon.linux import tpm as module
from daemon.linux.tpm import AUTHREAD, AUTHWRITE, NO_DA, WRITEDEFINE, WRITELOCKED, WRITTEN, Tpm
from tests import softtpm
from tests.hostpackages import ROOT
from tests.softtpm import SoftTpm

FIRST, SECOND = floor.PLACES


@pytest.fixture
def machine(tmp_path):
    with SoftTpm(tmp_path / "dev/tpmrm0") as found:
        yield found


def reason(done, *words):
    with pytest.raises(MixosError) as caught:
        done(*words)
    return caught.value.reason


def kept(machine):
    return floor.kept(Tpm(machine.descriptor))


def keep(machine, number):
    return floor.keep(Tpm(machine.descriptor), number)


# -- what is kept ------------------------------------------------------------------------------------------------------


def test_it_goes_up_by_any_step_and_never_down(machine):
    assert kept(machine) is None
    for number, then in ((0, 0), (5, 5), (5, 5), (3, 5), (20_261_130, 20_261_130), (floor.HIGHEST, floor.HIGHEST)):
        assert keep(machine, number) == then
        assert kept(machine) == then
    machine.cut()
    assert kept(machine) == floor.HIGHEST
    places = [Tpm(machine.descriptor).public(index) for index in floor.PLACES]
    assert places.count(None) == 1, "the one before is gone"


def test_what_is_kept_cannot_be_written(machine):
    keep(machine, 5)
    content = floor.CONTENT.pack(floor.MAGIC, 4)
    assert reason(Tpm(machine.descriptor).write, FIRST, content) == "tpm-refused"
    machine.cut()  # a lock for one start would be gone
    assert reason(Tpm(machine.descriptor).write, FIRST, content) == "tpm-refused"
    assert kept(machine) == 5


def test_nothing_is_written_when_nothing_changes(machine, monkeypatch):
    keep(machine, 5)
    asked = []
    monkeypatch.setattr(Tpm, "_exchange", recorded(asked))
    assert keep(machine, 5) == 5
    assert set(asked) == {module._PUBLIC, module._READ}


def recorded(asked):
    exchange = Tpm._exchange

    def done(self, message):
        asked.append(struct.unpack_from(">I", message, 6)[0])
        return exchange(self, message)

    return done


class Cut(Exception):
    """The power is gone."""


@pytest.mark.parametrize("done", [False, True], ids=["before", "after"])
def test_a_cut_at_any_command_leaves_the_old_or_the_new(tmp_path, monkeypatch, done):
    """At each command that changes something, before the TPM has it or once it is done, and at the same one when it is
    tried again."""
    exchange, asked, left, seen = Tpm._exchange, [], [], set()
    with SoftTpm(tmp_path / "whole") as machine:
        keep(machine, 5)
        monkeypatch.setattr(Tpm, "_exchange", recorded(asked))
        keep(machine, 7_000)
    changes = [at for at, command in enumerate(asked) if command not in (module._PUBLIC, module._READ)]
    assert [asked[at] for at in changes] == [module._DEFINE, module._WRITE, module._LOCK, module._UNDEFINE]

    def cut(self, message):
        left[0] -= 1
        if left[0] < 0:
            if done:
                exchange(self, message)
            raise Cut
        return exchange(self, message)

    for at in changes:
        monkeypatch.setattr(Tpm, "_exchange", exchange)
        with SoftTpm(tmp_path / f"{at}") as machine:
            keep(machine, 5)
            for _ in range(2):
                left[:] = [at]
                monkeypatch.setattr(Tpm, "_exchange", cut)
                with suppress(Cut):
                    keep(machine, 7_000)
                monkeypatch.setattr(Tpm, "_exchange", exchange)
                assert left == [-1] or kept(machine) == 7_000, "the fault happened"
                machine.cut()
                seen.add((asked[at], kept(machine)))
            assert keep(machine, 7_000) == kept(machine) == 7_000
            assert [Tpm(machine.descriptor).public(index) for index in floor.PLACES].count(None) == 1
    assert {number for _, number in seen} == {5, 7_000}


# -- what others do to it ----------------------------------------------------------------------------------------------


def test_what_was_removed_is_kept_anew(machine):
    keep(machine, 9)
    Tpm(machine.descriptor).undefine(FIRST)
    assert kept(machine) is None
    assert keep(machine, 9) == kept(machine) == 9


def test_clearing_the_tpm_removes_it(machine):
    keep(machine, 9)
    machine.cleared()
    assert kept(machine) is None
    assert keep(machine, 4) == 4


def test_with_an_owner_who_has_a_password_it_stays_and_does_not_rise(machine):
    keep(machine, 9)
    machine.owned(b"secret")
    assert kept(machine) == keep(machine, 8) == 9
    assert reason(keep, machine, 10) == "tpm-auth"
    assert reason(Tpm(machine.descriptor).undefine, FIRST) == "tpm-auth"
    assert kept(machine) == 9


STRANGE = {
    "not locked for good": {"attributes": AUTHREAD | AUTHWRITE | NO_DA},
    "a counter": {"attributes": AUTHREAD | AUTHWRITE | NO_DA | 1 << 4, "size": 8},
    "a policy": {"policy": bytes(32)},
    "another size": {"size": 15},
}


@pytest.mark.parametrize("what", STRANGE)
def test_an_index_of_another_kind_is_left_alone(machine, what):
    found = {"attributes": floor.ATTRIBUTES, "size": floor.CONTENT.size, **STRANGE[what]}
    machine.defined(FIRST, **found)
    assert kept(machine) is None
    assert keep(machine, 3) == kept(machine) == 3
    assert reason(keep, machine, 4) == "tpm-taken", "there is no second place"
    assert kept(machine) == 3
    assert Tpm(machine.descriptor).public(FIRST).size == found["size"]


def test_an_index_with_another_password_or_content_counts_for_nothing(machine):
    tpm = Tpm(machine.descriptor)
    for content in (b"no floor".ljust(16), floor.CONTENT.pack(floor.MAGIC, 1 << 60)):
        tpm.define(FIRST, floor.ATTRIBUTES, 16)
        tpm.write(FIRST, content)
        tpm.lock(FIRST)
        assert kept(machine) is None
        tpm.undefine(FIRST)
    machine.defined(FIRST, floor.ATTRIBUTES, 16, password=b"secret")
    handles, content = struct.pack(">II", FIRST, FIRST), floor.CONTENT.pack(floor.MAGIC, 7)
    assert machine.asked(module._WRITE, handles, struct.pack(">H", 16) + content + bytes(2), b"secret")[0] == 0
    assert machine.asked(module._LOCK, handles, b"", b"secret")[0] == 0
    assert kept(machine) is None
    assert keep(machine, 3) == kept(machine) == 3


def test_what_is_not_locked_yet_counts_for_nothing(machine):
    tpm = Tpm(machine.descriptor)
    keep(machine, 5)
    tpm.define(SECOND, floor.ATTRIBUTES, 16)
    tpm.write(SECOND, floor.CONTENT.pack(floor.MAGIC, 70))
    assert kept(machine) == 5
    assert keep(machine, 5) == 5
    assert tpm.public(SECOND) is None


def test_two_places_with_the_same_floor(machine):
    tpm = Tpm(machine.descriptor)
    for index in floor.PLACES:
        tpm.define(index, floor.ATTRIBUTES, 16)
        tpm.write(index, floor.CONTENT.pack(floor.MAGIC, 5))
        tpm.lock(index)
    assert keep(machine, 6) == kept(machine) == 6


def test_a_full_tpm_says_so(machine):
    index = 0x01800000
    for size in (1024, 1):
        code = 0
        while code == 0:
            index += 1
            public = struct.pack(">IHIHH", index, 0xB, AUTHREAD | AUTHWRITE, 0, size)
            parameters = struct.pack(">HH", 0, len(public)) + public
            code, _ = machine.asked(module._DEFINE, struct.pack(">I", softtpm.OWNER), parameters)
        assert code == 0x14B
    assert reason(keep, machine, 5) == "tpm-full"


# -- answers -----------------------------------------------------------------------------------------------------------

ANSWERS = {
    "nothing": b"",
    "cut": struct.pack(">HII", 0x8001, 60, 0) + bytes(20),
    "shorter than it says": struct.pack(">HII", 0x8001, 9, 0),
    "longer than it says": struct.pack(">HII", 0x8001, 12, 0) + bytes(60),
    "far too long": struct.pack(">HII", 0x8001, 1 << 31, 0),
    "noise": bytes(range(64)),
    "another tag": struct.pack(">HII", 0x8002, 12, 0) + bytes(2),
    "another index": struct.pack(">HII", 0x8001, 30, 0) + struct.pack(">HIHIHHH", 14, SECOND, 0xB, 0, 0, 16, 0)[:18],
    "sizes that lie": struct.pack(">HII", 0x8001, 14, 0) + b"\xff\xff\xff\xff",
}


def answering(*answers):
    """A TPM that says these, and then ends."""
    ours, other = socket.socketpair()

    def serve():
        with other:
            for one in answers:
                if not other.recv(4096):
                    return
                other.sendall(one)
            other.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    return ours


@pytest.mark.parametrize("what", ANSWERS)
def test_an_answer_that_makes_no_sense_is_refused(what):
    with answering(ANSWERS[what]) as end:
        assert reason(floor.kept, Tpm(end.fileno(), 5.0)) == "tpm-answer"


def error(code):
    return struct.pack(">HII", 0x8001, 10, code)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (0x101, "tpm-failed"),
        (0x120, "tpm-disabled"),
        (0x185, "tpm-disabled"),
        (0x921, "tpm-locked"),
        (0x9A2, "tpm-auth"),
        (0x98E, "tpm-auth"),
        (0x14B, "tpm-full"),
        (0x100, "tpm-refused"),
        (0x8B018B, "tpm-refused"),  # of a resource manager
    ],
)
def test_what_a_tpm_refuses_has_its_reason(code, why):
    with answering(error(code)) as end:
        assert reason(Tpm(end.fileno(), 5.0).public, FIRST) == why


def test_a_busy_tpm_is_asked_again():
    with answering(error(0x922), error(0x90A), error(0x18B)) as end:
        assert Tpm(end.fileno(), 5.0).public(FIRST) is None


def test_one_that_stays_busy_or_silent_is_given_up():
    with answering(*[error(0x922)] * 50) as end:
        assert reason(Tpm(end.fileno(), 0.3).public, FIRST) == "tpm-timeout"
    with answering() as end, socket.socketpair()[0] as silent:
        assert reason(Tpm(end.fileno(), 5.0).public, FIRST) in ("tpm-answer", "tpm-io")
        assert reason(Tpm(silent.fileno(), 0.3).public, FIRST) in ("tpm-answer", "tpm-io")
    ours, other = socket.socketpair()
    with ours, other:
        assert reason(Tpm(ours.fileno(), 0.3).public, FIRST) == "tpm-timeout"


def test_the_attributes_are_those_of_the_specification():
    """TPMA_NV, part 2: the bits by number."""
    assert sum(1 << bit for bit in (2, 12, 13, 18, 25)) == floor.ATTRIBUTES
    assert (WRITELOCKED, WRITTEN, WRITEDEFINE) == (1 << 11, 1 << 29, 1 << 13)


# -- the program -------------------------------------------------------------------------------------------------------


def program(tree, *words):
    code = softtpm.PROGRAM.format(root=os.fspath(ROOT), tree=os.fspath(tree))
    done = run([sys.executable, "-c", code, *words], allow=range(256))
    return done.status, json.loads(done.stdout)


def test_the_program_reads_and_raises(machine, tmp_path):
    assert program(tmp_path, "read") == (0, {"floor": None})
    assert program(tmp_path, "raise", "12") == (0, {"floor": 12})
    assert program(tmp_path, "raise", "2") == (0, {"floor": 12})
    assert program(tmp_path, "read") == (0, {"floor": 12})


@pytest.mark.parametrize(
    "words", [(), ("lower", "1"), ("raise",), ("raise", "-1"), ("raise", "x"), ("raise", "9" * 16), ("raise", "9" * 99)]
)
def test_the_program_refuses_other_words(machine, tmp_path, words):
    status, said = program(tmp_path, *words)
    assert (status, said["error"]["reason"]) == (2, "usage")


def test_the_program_without_a_tpm(tmp_path, capsys, monkeypatch):
    assert floor.main(["read"], tmp_path) == TpmError.exit_code == 14
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "tpm-missing"
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/tpmrm0").mkdir()
    assert floor.main(["read"], tmp_path) == 14
    assert json.loads(capsys.readouterr().out)["error"]["reason"] == "tpm-io"
