"""mDNS as a part of the daemon: what is announced, and the questions to the process that does it.

The responder is a process of its own (`mdns_main`, the unit `mdns`): it speaks with the network, needs no privileges
and costs nothing while it is off. This part turns mdns.toml into the one small file that the process reads
(/run/mixos/mdns.json), keeps it up to date as units come and go, and asks over the process's socket.

    # /etc/mixos/mdns.toml
    enabled = true
    [services.web]
    type = "_http._tcp"
    port = 8080
    unit = "web"                 # announced while this unit runs; left out: always
    txt = { path = "/" }
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field, StringConstraints

from common.errors import MixosError, UnreachableError
from common.files import write_atomically
from common.tomledit import set_keys
from common.tomlfile import Strict, load, parse, read_text
from daemon.core.method import ADMINS, PEOPLE, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.linux.log import log

if TYPE_CHECKING:
    from daemon.parts.mdns.answers import Found, Status, Switched

CONTROL = Path("/run/mixos-mdns/control")  # made by the process in its runtime directory
_ANSWER = 1 << 20

# RFC 6763 section 7: up to 15 letters, digits and hyphens behind an underscore
ServiceType = Annotated[str, StringConstraints(pattern=r"^_[a-z0-9](?:[a-z0-9-]{0,13}[a-z0-9])?\._(?:tcp|udp)$")]
TxtKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,16}$")]
TxtValue = Annotated[str, StringConstraints(max_length=200)]
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,50}[A-Za-z0-9])?$")]
Interface = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,14}$")]


class Announced(Strict):
    """A service to announce. name: as people see it, default the host's; unit: announced only while it runs."""

    type: ServiceType
    port: Annotated[int, Field(strict=True, ge=1, le=65535)]
    name: Annotated[str, StringConstraints(min_length=1, max_length=50, pattern=r"^[^\x00-\x1f\x7f.]*$")] | None = None
    unit: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")] | None = None
    txt: Annotated[dict[TxtKey, TxtValue], Field(max_length=20)] = Field(default_factory=dict)


class MdnsFile(Strict):
    """mdns.toml. hostname: default the system's; interfaces: default all with a wire; ssh: announce _ssh._tcp."""

    enabled: Annotated[bool, Field(strict=True)] = True
    ssh: Annotated[bool, Field(strict=True)] = True
    hostname: Label | None = None
    interfaces: Annotated[tuple[Interface, ...], Field(max_length=32)] = ()
    services: Annotated[dict[Label, Announced], Field(max_length=64)] = Field(default_factory=dict)


class Browse(Strict):
    """What to look for."""

    type: Annotated[ServiceType | None, Field(description="such as _http._tcp; none: the types that there are")] = None
    seconds: Annotated[float, Field(ge=0.5, le=20, description="how long to listen")] = 3.0


class MdnsPart:
    """The part. control: the socket of the process."""

    name = "mdns"

    def __init__(self, context: Context, control: Path = CONTROL) -> None:
        self.context = context
        self.control = control
        self.path = context.etc / "mdns.toml"
        self.wanted = context.run / "mdns.json"
        self.enabled = False
        self._follower: asyncio.Task[None] | None = None

    def methods(self) -> Sequence[Method]:
        """Looking around is for all people."""
        return (
            Method("mdns.status", "Whether it runs, under which name, and what is announced.", self._status),
            Method("mdns.browse", "What others announce.", self._browse, PEOPLE, Browse, seconds=40.0),
            Method("mdns.apply", "Announce what mdns.toml says now.", self._apply, ADMINS, changes=True),
            Method("mdns.on", "Announce again; the unit `mdns` must run.", self._on, ADMINS, changes=True),
            Method("mdns.off", "Say goodbye and stay silent; the unit `mdns` ends.", self._off, ADMINS, changes=True),
        )

    async def start(self) -> None:
        """Write what is to be announced, and keep it so. A broken file raises ConfigError; what was announced stays."""
        await self.refresh()
        self._follower = background("mdns-units", self._follow)

    async def stop(self) -> None:
        """The process goes on."""
        if self._follower:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower

    def status(self) -> Mapping[str, Any]:
        """Whether it is switched on."""
        return {"enabled": self.enabled}

    async def refresh(self) -> None:
        """Tell the process what holds now, if anything changed."""
        file = load(self.path, MdnsFile) if self.path.exists() else MdnsFile()
        ssh = [Announced.model_validate({"type": "_ssh._tcp", "port": 22})] if file.ssh else []
        services = [one for one in file.services.values() if one.unit is None or self._runs(one.unit)]
        hostname = file.hostname or Path("/proc/sys/kernel/hostname").read_text().strip()
        fields = {"enabled": file.enabled, "hostname": hostname.partition(".")[0], "interfaces": file.interfaces}
        data = json.dumps(
            {**fields, "services": [one.model_dump(mode="json") for one in (*ssh, *services)]}, sort_keys=True
        ).encode()
        self.enabled = file.enabled
        if not self.wanted.exists() or self.wanted.read_bytes() != data:
            write_atomically(self.wanted, data)
            with contextlib.suppress(UnreachableError):  # it reads the file when it starts
                await self._ask({"do": "reload"}, 5)

    def _runs(self, unit: str) -> bool:
        """Whether a unit runs, as its shim recorded it."""
        try:
            lines = (self.context.run / "units" / unit / "state").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return "phase running" in lines

    async def _follow(self) -> None:
        async for _ in self.context.events.listen(("service.", "config.restored")):
            try:
                await self.refresh()
            except (MixosError, OSError) as error:
                log("warning", f"mdns: {error}")

    async def _status(self, caller: Caller, _: Nothing) -> Status:
        try:
            told = cast("Status", await self._ask({"do": "status"}, 5))
            return {**told, "enabled": self.enabled, "running": True}
        except UnreachableError:
            return {"enabled": self.enabled, "running": False}

    async def _browse(self, caller: Caller, wish: Browse) -> Found:
        question = {"do": "browse", **wish.model_dump(mode="json")}
        return cast("Found", await self._ask(question, wish.seconds + 15))

    async def _apply(self, caller: Caller, _: Nothing) -> Switched:
        await self.refresh()
        return {"enabled": self.enabled}

    async def _on(self, caller: Caller, _: Nothing) -> Switched:
        return await self._switch(True)

    async def _off(self, caller: Caller, _: Nothing) -> Switched:
        return await self._switch(False)

    async def _switch(self, on: bool) -> Switched:
        text = read_text(self.path) if self.path.exists() else ""
        parse(text, self.path, MdnsFile)
        write_atomically(self.path, set_keys(text, (), {"enabled": on}).encode())
        await self.refresh()
        self.context.events.publish("mdns.on" if on else "mdns.off", "mdns")
        return {"enabled": self.enabled}

    async def _ask(self, question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """One line to the process, one line back. Raises UnreachableError `mdns-off`, MixosError with its reason."""
        try:
            async with asyncio.timeout(seconds):
                reader, writer = await asyncio.open_unix_connection(self.control, limit=_ANSWER)
                try:
                    writer.write(json.dumps(question).encode() + b"\n")
                    await writer.drain()
                    answer = json.loads(await reader.readuntil(b"\n"))
                finally:
                    writer.close()
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise UnreachableError(
                "the mDNS responder is not running", reason="mdns-off", hint="mixctl mdns on", retryable=True
            ) from error
        except (ValueError, RecursionError, asyncio.LimitOverrunError) as error:
            raise MixosError("the mDNS responder answered nonsense", reason="mdns-answer") from error
        if not isinstance(answer, dict) or "error" in answer:
            reason = str(answer.get("error")) if isinstance(answer, dict) else "mdns-answer"
            raise MixosError("the mDNS responder could not do it", reason=reason)
        return answer
