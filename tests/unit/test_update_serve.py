"""The client's end of a bundle."""

import os
import threading
import time

import pytest

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


@pytest.mark.parametrize("name", ["nothing.mixb", "folder", "pipe", "ftp://updates.example/a.mixb"])
def test_what_is_no_file_is_told_with_what_could_be(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(MixosError) as caught, serve.served(name):
        pass
    assert (caught.value.reason, name in caught.value.message) == ("file-unreadable", True)
    assert caught.value.hint
