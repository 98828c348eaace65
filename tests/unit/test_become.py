"""What a process gives up."""

import os

import pytest

from daemon.linux.become import keep_only


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


def _is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True
