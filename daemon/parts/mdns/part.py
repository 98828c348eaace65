"""mDNS as a part of the daemon: what is announced, and the questions to the process that does it.

The responder runs in a process of its own (`daemon.parts.mdns.process`): it speaks with the network, needs no
privileges, and is not there while it is off. This part says what is wanted by mdns.toml and the units that run now.

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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, Field, StringConstraints

from common.errors import MixosError, UnreachableError
from common.files import write_atomically
from common.tomledit import set_keys
from common.tomlfile import Strict, load, parse, read_text
from daemon.core.method import ADMINS, PEOPLE, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.tasks import background
from daemon.core.worker.worker import Worker
from daemon.linux.log import log
from daemon.parts.mdns.manifest import MANIFEST

if TYPE_CHECKING:
    from daemon.parts.mdns.answers import Found, Status, Switched

_SECONDS = 5.0  # for an answer that takes no time

# RFC 6763 section 7: up to 15 letters, digits and hyphens behind an underscore
ServiceType = Annotated[str, StringConstraints(pattern=r"^_[a-z0-9](?:[a-z0-9-]{0,13}[a-z0-9])?\._(?:tcp|udp)$")]
TxtKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,16}$")]
_NAME_BYTES = 60  # a label has 63 (RFC 1035 section 2.3.4); three are for "-2" when the name is another device's
_TXT_BYTES = 1300  # of all strings together, each with its length (RFC 6763 section 6.2)
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9-]{0,50}[A-Za-z0-9])?$")]
Interface = Annotated[str, StringConstraints(pattern=r"^[A-Za-z][A-Za-z0-9._-]{0,14}$")]


def _label(name: str) -> str:
    """A service's name. Raises ValueError."""
    if len(name.encode()) > _NAME_BYTES:
        raise ValueError(f"a name has at most {_NAME_BYTES} bytes, and this one {len(name.encode())}")
    return name


def _texts(txt: dict[str, str]) -> dict[str, str]:
    """Strings of a TXT record, 255 bytes each (RFC 6763 section 6.1). Raises ValueError."""
    sizes = {key: len(f"{key}={value}".encode()) for key, value in txt.items()}
    for key, size in sizes.items():
        if size > 255:
            raise ValueError(f"{key} and its value have at most 255 bytes, and these {size}")
    if (total := sum(sizes.values()) + len(sizes)) > _TXT_BYTES:
        raise ValueError(f"all of it has at most {_TXT_BYTES} bytes, and this {total}")
    return txt


Instance = Annotated[str, StringConstraints(min_length=1, pattern=r"^[^\x00-\x1f\x7f.]*$"), AfterValidator(_label)]


class Announced(Strict):
    """A service to announce. name: as people see it, default the host's; unit: announced only while it runs."""

    type: ServiceType
    port: Annotated[int, Field(strict=True, ge=1, le=65535)]
    name: Instance | None = None
    unit: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,63}$")] | None = None
    txt: Annotated[dict[TxtKey, str], Field(max_length=20), AfterValidator(_texts)] = Field(default_factory=dict)


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
    """The part."""

    name = "mdns"

    def __init__(self, context: Context) -> None:
        self.context = context
        self.path = context.etc / "mdns.toml"
        self.enabled = False
        self.wanted: dict[str, Any] = {}
        self._told: dict[str, Any] = {}  # what the process has been told
        self.worker = Worker.of(context, MANIFEST, settings=lambda: self.wanted)
        self._follower: asyncio.Task[None] | None = None

    def methods(self) -> Sequence[Method]:
        """Looking around is for all people."""
        return (
            Method("mdns.status", "Whether it runs, under which name, and what is announced.", self._status),
            Method("mdns.browse", "What others announce.", self._browse, PEOPLE, Browse, seconds=40.0),
            Method("mdns.apply", "Announce what mdns.toml says now.", self._apply, ADMINS, changes=True),
            Method("mdns.on", "Announce again.", self._on, ADMINS, changes=True),
            Method("mdns.off", "Say goodbye and stay silent.", self._off, ADMINS, changes=True),
        )

    async def start(self) -> None:
        """Announce what mdns.toml says, and keep it so. A broken file raises ConfigError, and nothing is announced."""
        await self.refresh()
        self._follower = background("mdns-units", self._follow)

    async def stop(self) -> None:
        """Say goodbye."""
        if self._follower:
            self._follower.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._follower
        await self.worker.stop()

    def status(self) -> Mapping[str, Any]:
        """Whether it is switched on, and the process."""
        return {"enabled": self.enabled, "process": self.worker.status()}

    async def refresh(self) -> None:
        """Tell the process what is wanted now, if anything changed; begin or end it with `enabled`."""
        file = load(self.path, MdnsFile) if self.path.exists() else MdnsFile()
        ssh = [Announced.model_validate({"type": "_ssh._tcp", "port": 22})] if file.ssh else []
        services = [one for one in file.services.values() if one.unit is None or self._runs(one.unit)]
        hostname = file.hostname or Path("/proc/sys/kernel/hostname").read_text().strip()
        self.wanted = {
            "hostname": hostname.partition(".")[0][:_NAME_BYTES],
            "interfaces": list(file.interfaces),
            "services": [one.model_dump(mode="json") for one in (*ssh, *services)],
        }
        self.enabled = file.enabled
        if not file.enabled:
            await self.worker.stop()
            return
        self.worker.begin()
        if self.wanted != self._told:
            wanted = self.wanted
            with contextlib.suppress(UnreachableError):  # it gets it when it starts
                await self._ask("want", wanted, _SECONDS)
                self._told = wanted

    def _runs(self, unit: str) -> bool:
        """Whether a unit runs, as its shim recorded it."""
        try:
            lines = (self.context.run / "units" / unit / "state").read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return False
        return "phase running" in lines

    async def _follow(self) -> None:
        async for _ in self.context.events.listen(("service.", "config.restored", "process.started")):
            try:
                await self.refresh()
            except (MixosError, OSError) as error:
                log("warning", f"mdns: {error}")

    async def _status(self, caller: Caller, _: Nothing) -> Status:
        try:
            told = cast("Status", await self._ask("status", None, _SECONDS))
            return {**told, "enabled": self.enabled, "running": True}
        except UnreachableError:
            return {"enabled": self.enabled, "running": False}

    async def _browse(self, caller: Caller, wish: Browse) -> Found:
        return cast("Found", await self._ask("browse", [wish.type, wish.seconds], wish.seconds + 15))

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

    async def _ask(self, question: str, params: Any, seconds: float) -> dict[str, Any]:
        """What the process answers. Raises UnreachableError `mdns-off`, MixosError as the process does."""
        try:
            answer = await self.worker.call(question, params, seconds)
        except (MixosError, TimeoutError) as error:
            if isinstance(error, MixosError) and error.reason != "process-gone":
                raise
            hint = "mixctl mdns status" if self.enabled else "mixctl mdns on"
            raise UnreachableError(
                "the mDNS responder is not running", reason="mdns-off", hint=hint, retryable=True
            ) from error
        if not isinstance(answer, dict):
            raise MixosError("the mDNS responder answered nonsense", reason="mdns-answer")
        return answer
