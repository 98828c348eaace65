"""`mixos-mdns`: the process that answers for this device's name. Needs no privileges and nothing but the network.

It reads /run/mixos/mdns.json (written by the daemon), listens on `control` in its runtime directory, one JSON object
per line: {"do": "status"}, {"do": "reload"}, {"do": "browse", "type", "seconds"}. Switched off, it ends with status 0.
While there is no network it waits, and whenever addresses change it starts over with the new ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any

from daemon.linux.log import log

WANTED = Path("/run/mixos/mdns.json")
CONTROL = Path("/run/mixos-mdns/control")
_QUIET = 0.5  # seconds that addresses must rest before they are used
_LINE = 64 << 10
_CLIENTS = 8
_CHECK = 60.0  # seconds after which we ask whether our name is still ours alone
_AGAIN = 5.0  # seconds after which a failed start is tried again


class Process:
    """State of the process: what is wanted, the responder that does it, why it is not done."""

    def __init__(self, wanted: Path, control: Path) -> None:
        self.path = wanted
        self.control = control
        self.wanted: dict[str, Any] = {}
        self.responder: Any = None  # Responder; imported when there is a network
        self.problem: str | None = None
        self.conflicts = 0
        self.wake = asyncio.Event()
        self.stopped = False
        self.clients = 0

    async def run(self) -> None:
        """Until SIGTERM, or until it is switched off."""
        from daemon.parts.mdns.responder import watch_addresses

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop)
        self.control.unlink(missing_ok=True)
        server = await asyncio.start_unix_server(self.client, self.control, limit=_LINE)
        self.control.chmod(0o600)
        watch = watch_addresses(self.wake.set)
        try:
            while not self.stopped:
                self.wake.clear()
                again = await self.update()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.wake.wait(), again)
                await asyncio.sleep(0 if self.stopped else _QUIET)
        finally:
            asyncio.get_running_loop().remove_reader(watch)
            watch.close()
            server.close()
            await self.silence()
            self.control.unlink(missing_ok=True)

    def stop(self) -> None:
        """End soon."""
        self.stopped = True
        self.wake.set()

    def conflict(self) -> None:
        """Another device has our name: probe again."""
        if self.problem is None:
            self.conflicts += 1
            self.problem = "conflict"
            self.wake.set()

    async def update(self) -> float | None:
        """Make what is announced what is wanted; returns seconds after which to look again, None: when something
        changes."""
        wanted = read(self.path)
        if not wanted["enabled"]:
            self.stop()
            return None
        from daemon.parts.mdns.responder import Responder, network

        place = network(wanted["interfaces"])
        same = self.responder is not None and self.responder.place == place and self.wanted == wanted
        if same and self.problem is None:
            self.responder.check()
            return _CHECK
        await self.silence()
        if self.problem == "conflict":  # the other one probes again, too: whoever comes first has the name
            await asyncio.sleep(random.uniform(0, min(30, 3 * self.conflicts)))
        self.wanted, self.problem = wanted, None
        if not place.choice:
            return None  # no network yet
        self.responder = Responder(place, self.conflict)
        try:
            await self.responder.announce(wanted["hostname"], wanted["services"])
        except Exception as error:  # noqa: BLE001  # whatever the network does to us, we try again
            self.problem = f"{type(error).__name__}: {error}"[:200]
            log("warning", f"mdns: {self.problem}")
            return _AGAIN
        if self.responder.host != wanted["hostname"]:
            log(
                "notice",
                f"mdns: {wanted['hostname']}.local is another device's; this one is {self.responder.host}.local",
            )
        return _CHECK

    async def silence(self) -> None:
        """Say goodbye, if anything was said."""
        responder, self.responder = self.responder, None
        if responder is not None:
            with contextlib.suppress(OSError):
                await responder.close()

    # -- control -----------------------------------------------------------------------------------------------------

    async def client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One question, one answer."""
        self.clients += 1
        try:
            if self.clients > _CLIENTS or not _trusted(writer.get_extra_info("socket")):
                return
            question = json.loads(await asyncio.wait_for(reader.readuntil(b"\n"), 5))
            writer.write(json.dumps(await self.answer(question)).encode() + b"\n")
            await asyncio.wait_for(writer.drain(), 5)
        except (
            OSError,
            ValueError,
            RecursionError,
            TimeoutError,
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
        ):
            pass  # nothing is owed to a client that sends garbage or goes away
        finally:
            self.clients -= 1
            writer.close()

    async def answer(self, question: Any) -> dict[str, Any]:
        """What a question gets; {"error": reason} for what cannot be done."""
        do = question.get("do") if isinstance(question, dict) else None
        if do == "reload":
            self.wake.set()
            return {}
        if do == "status":
            told = self.responder.status() if self.responder and self.responder.infos else {}
            wanted = f"{self.wanted.get('hostname')}.local"
            return {"wanted": wanted, "conflicts": self.conflicts, "problem": self.problem, **told}
        if do == "browse":
            return await self.browse(question)
        return {"error": "mdns-question"}

    async def browse(self, question: dict[str, Any]) -> dict[str, Any]:
        """Types, or services of a type."""
        responder = self.responder
        if responder is None:
            return {"error": "mdns-no-network"}
        kind, seconds = question.get("type"), question.get("seconds")
        seconds = min(20.0, max(0.5, seconds)) if isinstance(seconds, int | float) else 3.0
        try:
            if kind is None:
                return {"types": await responder.types(seconds)}
            return {"services": await responder.browse(str(kind), seconds)}
        except Exception as error:  # noqa: BLE001  # a name that zeroconf refuses, a network that went away
            log("warning", f"mdns: browse: {type(error).__name__}: {error}")
            return {"error": "mdns-browse"}


def read(path: Path) -> dict[str, Any]:
    """What is wanted; the device's name and SSH when nobody has said anything yet."""
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found, dict) and {"enabled", "hostname", "interfaces", "services"} <= set(found):
            return found
    except (OSError, ValueError, RecursionError):
        pass
    services = [{"type": "_ssh._tcp", "port": 22, "name": None, "txt": {}}]
    return {"enabled": True, "hostname": socket.gethostname(), "interfaces": [], "services": services}


def _trusted(peer: socket.socket) -> bool:
    """Root or ourselves (unix(7), SO_PEERCRED)."""
    _, uid, _ = struct.unpack("=iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return uid in (0, os.getuid())


def main(argv: list[str] | None = None) -> int:
    """Entry point: `mixos-mdns [WANTED [CONTROL]]`; returns the exit code."""
    paths = [Path(word) for word in (sys.argv[1:] if argv is None else argv)]

    wanted, control = [*paths, *[WANTED, CONTROL][len(paths) :]]
    if not read(wanted)["enabled"]:
        return 0

    async def run() -> None:
        await Process(wanted, control).run()

    try:
        asyncio.run(run())
    except OSError as error:
        log("err", f"mdns: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
