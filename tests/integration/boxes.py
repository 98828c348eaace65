"""The part `net` with folders of its own, in whatever network namespace it is called, and what `ip` says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from buildsys.run import run
from daemon.core.change.applier import Wish
from daemon.core.method import Caller, Nothing, Role
from daemon.core.part import Context
from daemon.parts.net.part import Interfaces

CALLER = Caller(Role.ADMIN, 0, 0, 1, "root", "local")
NOTHING = Nothing()


def ip(*words: str) -> Any:
    """`ip -json …`, decoded."""
    text = run(["ip", "-json", *words]).text
    return json.loads(text) if text.strip() else []


def addresses(name: str) -> set[str]:
    """Addresses of an interface as `ip` tells them, without link-local ones."""
    (link,) = ip("address", "show", "dev", name)
    return {f"{row['local']}/{row['prefixlen']}" for row in link["addr_info"] if row["scope"] == "global"}


def routes(family: str = "-4") -> set[tuple[str, str, str]]:
    """(destination, gateway, interface) of routes that somebody added."""
    rows = ip(family, "route", "show", "table", "main")
    return {(row["dst"], row.get("gateway", ""), row["dev"]) for row in rows if row.get("protocol") != "kernel"}


def cable(one: str = "eth0", other: str = "far0") -> None:
    """Two interfaces that are connected."""
    run(["ip", "link", "add", one, "type", "veth", "peer", "name", other])
    run(["ip", "link", "set", other, "up"])


class Box:
    """The part with folders of its own."""

    def __init__(self, tmp: Path) -> None:
        self.context = Context(run=tmp / "run", state=tmp / "state", etc=tmp / "etc", lib=tmp / "lib", log=tmp / "log")
        self.context.etc.mkdir(parents=True, exist_ok=True)
        self.file = self.context.etc / "network.toml"
        self.part = Interfaces(self.context, etc=tmp)

    async def apply(self, text: str, confirm: int = 0, caller: Caller = CALLER) -> Any:
        """As `mixctl net apply` after the file was edited; the part need not have been started."""
        self.context.changes._appliers["net"] = self.part.engine
        self.file.write_text(text)
        return await self.part.apply(caller, Wish(confirm=confirm))

    def resolv(self) -> str:
        return (self.context.run / "dns/resolv.conf").read_text()
