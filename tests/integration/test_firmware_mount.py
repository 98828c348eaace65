"""How `mixos-firmware` comes to write where everybody else may only read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildsys.run import run
from daemon.firmware import variables
from daemon.linux.become import LINUX_IMMUTABLE, keep_capabilities

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(os.geteuid() != 0, reason="mounting takes root"),
]


@pytest.fixture
def efivars(tmp_path: Path) -> Iterator[Path]:
    """A file system in its place, mounted as it is on a device."""
    place = tmp_path / variables.EFIVARS
    place.mkdir(parents=True)
    run(["mount", "-t", "tmpfs", "-o", "ro,nosuid,nodev,noexec", "tmpfs", str(place)])
    yield place
    run(["umount", str(place)])


def test_only_the_process_that_asked_can_write(efivars: Path, tmp_path: Path) -> None:
    """Also once it has dropped what it was allowed to ask by."""
    child = os.fork()
    if not child:
        status = 1
        try:
            variables.unlock(tmp_path)
            keep_capabilities({LINUX_IMMUTABLE})
            variables.set_variable(efivars / "db", b"data")
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (efivars / "db").read_bytes() == b"data"
    with pytest.raises(OSError, match="db") as caught:
        variables.set_variable(efivars / "db", b"other")
    assert caught.value.errno == errno.EROFS
