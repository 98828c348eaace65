"""The whole suite on this host, in namespaces of its own: `python -m tests.boot.escapes.onhost FOLDER LAUNCHER`.

Run by tests/integration/test_escapes_host.py, which makes the namespaces (processes, network, mounts, host name, IPC):
outside them nothing is attempted, and nothing is left when this ends. FOLDER holds `attempts`. Prints one JSON object:
the tables by condition, and what the proxy told.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from daemon.core.events import Bus
from daemon.linux.sandbox.compile import compile_policy
from daemon.linux.sandbox.policy import Policy
from daemon.linux.sandbox.proxy_rules import Address, Rules, parse_address
from daemon.parts.sandbox.proxy import Proxy, serving
from tests.boot.escapes import suite
from tests.waiting import PATIENCE, eventually, processes

ACCOUNT = 64001
SYSTEM = ["/usr", "?/bin", "?/sbin", "?/lib", "?/lib64", "?/etc/passwd"]
SECONDS = 240.0


class Recorder(Bus):
    """Keeps the reasons of what was denied."""

    def __init__(self) -> None:
        super().__init__()
        self.reasons: list[str] = []

    def publish(self, topic: str, subject: str, **data: Any) -> None:
        self.reasons.append(str(data["reason"]))


async def capture(argv: Sequence[str | Path], leaked: int) -> str:
    """Output of a program that gets a descriptor and a variable that it must not hand on."""
    child = await asyncio.create_subprocess_exec(
        *argv, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        pass_fds=(leaked,), env={"PATH": "/usr/bin:/usr/sbin:/bin:/sbin", "SECRET": suite.TOKEN},
    )  # fmt: skip
    async with asyncio.timeout(SECONDS):
        out, _ = await child.communicate()
    return out.decode("utf-8", "replace") + f"\ncode={child.returncode}"


async def alone(place: Path, name: str, argv: Sequence[str | Path], leaked: int) -> bool:
    """Whether one of the attempts that need a sandbox of their own worked."""
    said = await capture(argv, leaked)
    file = suite.ALONE[name]
    if file is None:
        return said.endswith("code=0")
    late = place / "project" / file
    await eventually(lambda: late.exists() or not any(processes(f"attempts\0{name}\0")))
    worked = late.exists()
    late.unlink(missing_ok=True)
    return worked


@contextlib.asynccontextmanager
async def stage(folder: Path) -> AsyncIterator[Path]:
    """What the attempts attack, for as long as this lasts."""
    place = folder / "stage"
    child = await asyncio.create_subprocess_exec(
        folder / "attempts", "stage", place, *suite.facts(ACCOUNT, _disk()), stdin=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(30):
            while not (place / "shown" / "facts").exists():
                if child.returncode is not None:
                    raise RuntimeError("the stage could not be made")
                await asyncio.sleep(0.05)
        yield place
    finally:
        child.kill()
        await asyncio.wait_for(child.wait(), PATIENCE)


def _listens(port: int) -> bool:
    with socket.socket() as channel:
        return channel.connect_ex(("127.0.0.1", port)) == 0


def _disk() -> str:
    names = (name for name in sorted(os.listdir("/sys/block")) if Path("/dev", name).exists())
    return f"/dev/{next(names, 'none')}"


def _left(place: Path) -> dict[str, str]:
    """The files below the writable folder: mode, or content of those that must stay as they are."""
    work = place / "project"
    kept = {name: (work / name).read_text() for name in ("secret", "keys/key", ".git/config")}
    return {str(one.relative_to(work)): f"{one.lstat().st_mode:o}" for one in work.rglob("*")} | kept


async def lookup(host: str) -> list[Address]:
    """Names for the proxy; a real name server is not asked."""
    if host not in suite.NAMES:
        raise OSError("no such name")
    return [found for text in suite.NAMES[host].split() if (found := parse_address(text)) is not None]


def policy(place: Path, **changes: Any) -> Policy:
    return Policy.model_validate(
        {
            **suite.policy(place),
            "read-only": [*SYSTEM, *suite.policy(place)["read-only"]],
            "user": ACCOUNT,
            "group": ACCOUNT,
            "directory": f"{place}/project",
            **changes,
        }
    )


async def main(folder: Path, launcher: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    async with stage(folder) as place:
        attempts = place / "shown" / "attempts"
        leaked = os.open(place / "outside", os.O_RDONLY)
        pretender = await asyncio.create_subprocess_exec(folder / "attempts", "open-proxy", str(suite.PROXY_PORT))
        await eventually(lambda: _listens(suite.PROXY_PORT))
        found["outside"] = await capture([attempts, "--all"], leaked)
        found["outside-alone"] = {name: await alone(place, name, [attempts, name], leaked) for name in suite.ALONE}
        found["before"] = _left(place)
        pretender.send_signal(signal.SIGKILL)
        await asyncio.wait_for(pretender.wait(), PATIENCE)

        def command(name: str, one: Policy, *words: str) -> list[str | Path]:
            path = folder / f"{name}.policy"
            path.write_bytes(compile_policy(one, uid_locks=folder / "uids"))
            path.chmod(0o644)
            return [launcher, path, "--", attempts, *words]

        async def inside(name: str, one: Policy, *words: str) -> None:
            found[name] = await capture(command(name, one, *words), leaked)

        standard = policy(place, **{"execute-writable": True})
        await inside("inside", standard, "--all", "-proxy-")
        brief = policy(place, limits={**suite.policy(place)["limits"], "wall": "2s"})
        found["inside-alone"] = {
            name: await alone(place, name, command(name, brief, name), leaked) for name in suite.ALONE
        }
        await inside("strict", policy(place, seccomp="strict"), "--all", "-proxy-")
        await inside("host-network", policy(place, network="host", **{"execute-writable": True}), "--all", "-proxy-")
        await inside("full-proc", policy(place, proc="full", **{"execute-writable": True}), "--all", "-proxy-")
        events = Recorder()
        rules = Rules(suite.ALLOW)
        async with serving(folder / "proxy", Proxy("escapes", rules, events, lookup=lookup)) as path:
            behind = policy(place, network="proxy", **{"proxy-socket": str(path), "proxy-port": suite.PROXY_PORT})
            await inside("proxy", behind, "--all", "proxy-")
            await inside("behind-proxy", behind.model_copy(update={"execute_writable": True}), "--all", "-proxy-")
        found["denied"] = events.reasons
        found["after"] = _left(place)
    return found


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2])))))
