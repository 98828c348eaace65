"""`mixosd`: the device's daemon. One asyncio process: a server, and parts behind it.

The server answers as soon as the process runs; the parts come up behind it one by one, and one that fails is reported
and left out. A second instance ends with exit code 12.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import fcntl
import hashlib
import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import MixosError
from daemon.core import crashes
from daemon.core.audit import Audit, AuditError
from daemon.core.dispatch import Dispatcher
from daemon.core.keys import Keys
from daemon.core.limits import Limits
from daemon.core.manifest import manifests
from daemon.core.method import Caller, Role
from daemon.core.part import Context, Part, cgroups
from daemon.core.parts import Parts, Source, source
from daemon.core.peer import ACCOUNTS
from daemon.core.spool import Spool
from daemon.core.tasks import background
from daemon.core.worker.forks import Forks
from daemon.doors.server import Server
from daemon.linux.facts import ROOT, text
from daemon.linux.log import log
from daemon.parts.api.part import ApiPart
from daemon.parts.system.part import SystemPart
from daemon.parts.transfer.part import TransferPart

GROUP = "mixos"
_MAX_SOCKET = 107  # bytes of a socket's path (unix(7))


class BusyError(MixosError):
    """Another instance holds the lock."""

    exit_code = 12


def lock(path: Path) -> int:
    """Take the instance lock and keep it as long as the returned descriptor is open. Raises BusyError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise BusyError(f"mixosd is running already, {path} is its", reason="already-running") from error
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


class Daemon:
    """Everything of one daemon. Tests give other folders, parts, accounts and limits."""

    def __init__(
        self,
        context: Context,
        parts: Sequence[Source] | None = None,
        accounts: Mapping[int, Role] = ACCOUNTS,
        limits: Limits | None = None,
        bus: str = "/run/dbus/system_bus_socket",
    ) -> None:
        self.context = context
        self.audit = Audit(context.log / "audit")
        spool = Spool(context.state / "transfers")
        self.dispatcher = Dispatcher(self.audit, Keys(context.state / "idempotency"), context.events, spool)
        self.server = Server(self.dispatcher, accounts, limits)
        given = [source(one, context) for one in manifests() if one.part] if parts is None else parts

        def dbus() -> Part:
            from daemon.doors.dbus import DbusPart  # last, in its thread, and not needed to answer

            return DbusPart(context, self.dispatcher, accounts, bus, limits)

        system = Source("system", lambda: SystemPart(context, lambda: self.parts.status()))
        api = Source("api", lambda: ApiPart(context, self.dispatcher, self.audit))
        transfer = Source("transfer", lambda: TransferPart(self.dispatcher, spool))
        context.changes.call = self._call
        sources = [system, api, transfer, *given, Source("dbus", dbus)]
        self.parts = Parts(sources, self.dispatcher, context.gates.close, context.figures)

    async def run(self, stop: asyncio.Event, group: str = GROUP) -> None:
        """Serve until `stop` is set, the members of `group` as well where others may come."""
        try:
            self.audit.open()
            await self.audit.record("started", pid=os.getpid(), boot=text(ROOT / "proc/sys/kernel/random/boot_id"))
        except AuditError as error:  # questions are still answered; changes are refused
            log("err", error.message)
        serving = asyncio.create_task(
            self.server.serve(self.context.run / "mixosd.sock", group if self.context.shared else None, stop)
        )
        await asyncio.to_thread(self.context.changes.open)  # before any part reads its files
        starting = asyncio.create_task(self.parts.start())
        watching = background("audit", self._record_events)
        beating = background("beat", self.context.forks.beat) if self.context.forks.watch else None
        try:
            await serving
        finally:
            for task in (starting, watching):
                task.cancel()
            await asyncio.gather(starting, watching, return_exceptions=True)
            await self.context.changes.stop()
            await self.parts.stop()
            if beating is not None:
                beating.cancel()
            await self.context.forks.close()
            with contextlib.suppress(OSError):
                self.audit.close()

    async def _call(self, caller: Caller, method: str) -> object:
        """Have a part read changed files again, for whoever changed them."""
        call = self.dispatcher.prepare(caller, method, {})
        return await self.dispatcher.call(caller, call._replace(within=True))

    async def _record_events(self) -> None:
        """What comes of no call belongs to the audit as well: what the proxies of sandboxes refused, and that what
        somebody tried was undone."""
        async for topic, subject, _, data in self.context.events.listen(("sandbox.denied", "change.reverted")):
            with contextlib.suppress(AuditError):
                if topic == "change.reverted":
                    await self.audit.record("reverted", change=subject, **data)
                else:
                    self.audit.append("denied", method="sandbox.network", name=subject, **data)


async def run(daemon: Daemon) -> None:
    """Until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, 0)  # init starts us behind sshd and the network
    await daemon.run(stop)


def on_host(arguments: Sequence[str], forks: Forks) -> Daemon:
    """A daemon for an ordinary Linux host or a container, all its folders below one; its user is the administrator."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="mixosd", description="Without options: the daemon of a device.", allow_abbrev=False
    )
    parser.add_argument("--folder", required=True, help="run, state, etc, lib, libexec and log are below it")
    parts = {one.name: one for one in manifests() if one.part}
    usual = [name for name, one in parts.items() if one.on_host]
    parser.add_argument(
        "--part", choices=tuple(parts), action="append", help=f"default: {', '.join(usual)}; change is always there"
    )
    options = parser.parse_args(arguments)
    if not options.folder:
        parser.error("argument --folder: an empty name; . is the current folder")
    folder = Path(options.folder).absolute()
    if len(os.fsencode(folder / "run/mixosd.sock")) > _MAX_SOCKET:
        parser.error(
            f"argument --folder: {options.folder}: too long a path for a socket; choose one such as /tmp/mixosd"
        )
    places: dict[str, Any] = {name: folder / name for name in ("run", "state", "etc", "lib", "log", "libexec")}
    root = cgroups()
    name = f"{root.name}-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:8]}"
    context = Context(**places, cgroups=root.with_name(name), shared=False, forks=forks)
    wanted = {"change", *(options.part or usual)}  # whatever alters something may be on trial, and must be confirmed
    chosen = [source(one, context) for name, one in parts.items() if name in wanted]
    return Daemon(
        context, chosen, {os.geteuid(): Role.ADMIN}, bus=str(context.run / "bus")
    )  # the host's own bus is not ours to be on


def main(arguments: Sequence[str], forks: Forks) -> int:
    """Serve until told to end; returns the exit code. See `daemon.main`."""
    daemon = on_host(arguments, forks) if arguments else Daemon(Context(forks=forks))
    context = daemon.context
    faulthandler.enable()  # the watchdog's SIGABRT says on the console where the loop stands
    try:
        context.run.mkdir(parents=True, exist_ok=True)
        held = lock(context.run / "mixosd.lock")
        crashes.begin(context.run, forks.note)
        asyncio.run(run(daemon))
        crashes.end(context.run)
        os.close(held)
    except MixosError as error:
        log("err", error.message)
        return error.exit_code
    except OSError as error:
        log("err", f"cannot serve: {f'{error.filename}: ' if error.filename else ''}{error.strerror or error}")
        return 1
    return 0
