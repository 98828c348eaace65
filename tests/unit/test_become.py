"""What a process gives up."""

import os
from pathlib import Path

import pytest

from daemon import fetch, release
from daemon.linux.become import keep_capabilities, keep_only
from daemon.slots import worker


@pytest.mark.parametrize("also", [(), (0,), (0, 0, 2)])
def test_only_these_descriptors_are_kept(also):
    """In a process of its own, which says what it has left."""
    take, give = os.pipe()
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    child = os.fork()
    if not child:
        try:
            keep_only((give, others[1], *also))
            os.write(give, repr([one for one in range(256) if _is_open(one)]).encode())
        finally:
            os._exit(0)
    os.close(give)
    os.waitpid(child, 0)
    assert os.read(take, 4096).decode() == repr(sorted({0, 1, 2, give, others[1]}))
    for one in (take, *others):
        os.close(one)


@pytest.mark.parametrize("module", [fetch, release, worker])
def test_nobody_is_left_when_one_that_reads_what_strangers_sent_is_killed(module, tmp_path, monkeypatch):
    """A process of its own would keep the slot that is written, and what was trusted, open."""
    monkeypatch.setattr(module, "ACCOUNT", "nobody")
    monkeypatch.setattr(worker, "has_apparmor", lambda: False)
    take, give = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if not child:
        said = b"confined"
        try:
            os.dup2(give, 1)
            {
                fetch: fetch._confine,
                release: lambda: release._confine(tmp_path, ()),
                worker: lambda: worker._confine("nobody", parent, ()),
            }[module]()
            if not os.fork():
                os._exit(0)
            said = b"forked"
        except BlockingIOError:
            said = b"alone"
        finally:
            os.write(1, said)
            os._exit(0)
    os.close(give)
    os.waitpid(child, 0)
    with os.fdopen(take, "rb") as stream:
        assert stream.read() == b"alone"


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def capabilities(kind):
    """Of this process: a bit for each."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(f"{kind}:")), 16)


def test_only_these_capabilities_are_kept():
    """None where there are none; and none comes back by executing something."""
    mine = capabilities("CapPrm") & 0xFFFFFFFF
    kept = mine & -mine
    take, give = os.pipe()
    child = os.fork()
    if not child:
        try:
            keep_capabilities({kept.bit_length() - 1} if kept else set())
            found = [capabilities(kind) for kind in ("CapEff", "CapPrm", "CapInh", "CapAmb")]
            os.write(give, repr((found, capabilities("CapBnd") if kept else 0)).encode())
        finally:
            os._exit(0)
    os.close(give)
    os.waitpid(child, 0)
    assert os.read(take, 4096).decode() == repr(([kept, kept, 0, 0], 0))
    os.close(take)
