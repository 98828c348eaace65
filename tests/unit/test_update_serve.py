"""The client's end of a bundle."""

import os
import threading
import time

import pytest

from common.bundle.ranges import Ranges
from common.errors import MixosError
from daemon.parts.update import serve


def test_who_serves_a_file_has_descriptors_of_its_own(tmp_path, monkeypatch):
    """The number of one that is closed is given to the next file that is opened."""
    bundle = tmp_path / "new.mixb"
    bundle.write_bytes(b"bytes")
    lost = []

    def slow(take, give, read):
        mine = os.fstat(take).st_ino
        for _ in range(30):
            time.sleep(0.01)
            try:
                lost.extend([take] if os.fstat(take).st_ino != mine else [])
            except OSError:
                lost.append(take)

    monkeypatch.setattr(serve, "answer", slow)
    with serve.served(str(bundle)) as source:
        assert source >= 0
    others = [os.memfd_create("other", os.MFD_CLOEXEC) for _ in range(4)]
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(10)
    for other in others:
        os.close(other)
    assert not lost


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "new.mixb")
    with serve.served(str(tmp_path / "new.mixb")) as source, pytest.raises(MixosError) as caught:
        Ranges(source, source, 5.0).read(0, 1)
    assert caught.value.reason == "source-unreadable"
