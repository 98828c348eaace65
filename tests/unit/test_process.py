"""Programs that go into the background by themselves."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from common.errors import MixosError
from daemon.linux.process import launch
from tests.supervision import alive
from tests.waiting import PATIENCE, eventually


def script(tmp_path: Path, text: str) -> list[str]:
    path = tmp_path / "program"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return [str(path)]


def test_its_status_and_what_it_says_without_waiting_for_what_it_leaves_behind(tmp_path):
    argv = script(tmp_path, "echo why >&2; sleep 1000 </dev/null & echo $! >$0.pid; exit 3")

    async def main() -> None:
        assert await launch(argv, seconds=PATIENCE) == (3, b"why\n")
        pid = int((tmp_path / "program.pid").read_text())
        assert alive(pid)
        os.kill(pid, 9)
        assert await launch(["/bin/true"], seconds=PATIENCE) == (0, b"")
        assert await launch(script(tmp_path, "kill -9 $$"), seconds=PATIENCE) == (-9, b"")

    asyncio.run(main())


def test_it_gets_nothing_of_ours(tmp_path):
    argv = script(tmp_path, "ls -l /proc/self/fd >$0.fds; env >$0.env")
    secret = os.open("/etc/hostname", os.O_RDONLY)
    try:
        assert asyncio.run(launch(argv, seconds=PATIENCE)) == (0, b"")
    finally:
        os.close(secret)
    assert "hostname" not in (tmp_path / "program.fds").read_text()
    names = {line.split("=")[0] for line in (tmp_path / "program.env").read_text().splitlines()}
    assert names <= {"PATH", "LC_ALL", "PWD", "_", "SHLVL", "OLDPWD"}


def test_what_does_not_end_is_killed_and_leaves_no_zombie(tmp_path):
    argv = script(tmp_path, "echo $$ >$0.pid; exec sleep 1000")
    pid = tmp_path / "program.pid"

    async def main() -> None:
        with pytest.raises(MixosError) as caught:
            await launch(argv, seconds=0.2)
        assert caught.value.reason == "program-timeout"
        pid.unlink(missing_ok=True)
        task = asyncio.create_task(launch(argv, seconds=PATIENCE))
        await eventually(lambda: pid.exists() and pid.read_text().strip())
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert not Path(f"/proc/{pid.read_text().strip()}").exists()
        with pytest.raises(MixosError) as caught:
            await launch(["/nonexistent"], seconds=1)
        assert caught.value.reason == "program-missing"

    asyncio.run(main())
