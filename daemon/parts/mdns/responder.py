"""The mDNS responder: one name, its addresses, its services, on some interfaces (RFC 6762, RFC 6763, by `zeroconf`).

`zeroconf` probes for the names of services but takes a host's name as given, so that is done here: three questions for
the name before it is used, another device's answer means the next name (`host-2`), who probes for ours gets an answer,
and a conflict that shows up later, after two networks were joined, starts over (RFC 6762 sections 8.1 and 9).
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ifaddr
from zeroconf import (  # type: ignore[attr-defined]  # exported, though not by name
    BadTypeInNameException,
    DNSAddress,
    DNSIncoming,
    DNSOutgoing,
    DNSQuestion,
    IPVersion,
    NonUniqueNameException,
    RecordUpdate,
    RecordUpdateListener,
    ServiceInfo,
    Zeroconf,
)
from zeroconf._handlers.query_handler import QueryHandler  # the only way to see questions; tests/unit/test_mdns.py
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf, AsyncZeroconfServiceTypes

from common.addresses import address as read_address

_QUERY, _ANSWER = 0, 0x8400  # flags of a question and of an owner's answer, RFC 1035 section 4.1.1
_A, _AAAA, _ANY, _IN = 1, 28, 255, 1
_ONLY = 0x8000  # of a class: these are all records of the name, RFC 6762 section 10.2
_TTL = 120  # seconds, RFC 6762 section 10
_DEFENCE_GAP = 0.25  # seconds between two answers to those who probe, RFC 6762 section 6
_PROBES, _PROBE_GAP = 3, 0.25  # RFC 6762 section 8.1; the gap in seconds
_MOST = 500  # answers that are listed
_NAMES = 99  # host names that are tried
# Made by this device for itself or for tunnels: nobody out there answers to its names.
# Whole names as they are given by programs: "br-lan" and "wgarden" are a person's.
_VIRTUAL = re.compile(r"lo|(wg|tun|tap|docker|dummy|ifb)[0-9]*|veth.*|br-[0-9a-f]{12}")


@dataclass(frozen=True)
class Network:
    """Interfaces to speak on: `zeroconf`'s choice (IPv4 addresses, IPv6 indices), and the addresses to announce."""

    choice: tuple[str | int, ...]
    addresses: tuple[bytes, ...]


def network(interfaces: Sequence[str]) -> Network:
    """What the device has now, on `interfaces` or, when none are named, on all that lead out."""
    choice: list[str | int] = []
    addresses: list[bytes] = []
    for adapter in ifaddr.get_adapters():
        if adapter.name not in interfaces if interfaces else _VIRTUAL.fullmatch(adapter.name):
            continue
        for one in adapter.ips:
            text = one.ip if isinstance(one.ip, str) else one.ip[0]
            packed = read_address(text.partition("%")[0]).packed
            addresses.append(packed)
            if isinstance(one.ip, str):
                choice.append(one.ip)
            elif adapter.index is not None and adapter.index not in choice:
                choice.append(adapter.index)
    return Network(tuple(choice), tuple(sorted(set(addresses))))


class _Asked(QueryHandler):
    """`zeroconf`'s answers, and a call with every question."""

    def __init__(self, zeroconf: Zeroconf, asked: Callable[[Sequence[DNSIncoming]], None]) -> None:
        super().__init__(zeroconf)
        self.asked = asked

    def handle_assembled_query(self, packets: list[DNSIncoming], *more: Any) -> None:
        """Called by `zeroconf`."""
        super().handle_assembled_query(packets, *more)
        self.asked(packets)


class Responder(RecordUpdateListener):
    """Announces on one state of the network; for another one a new responder is made.

    conflict: called when another device turns out to have our name.
    """

    def __init__(self, place: Network, conflict: Callable[[], None]) -> None:
        self.place = place
        self.conflict = conflict
        self.host = ""
        self.infos: dict[tuple[str, str, int], ServiceInfo] = {}  # by type, name, and which of several such
        self.zeroconf = AsyncZeroconf(interfaces=list(place.choice), ip_version=IPVersion.All)
        self.zeroconf.zeroconf.query_handler = _Asked(self.zeroconf.zeroconf, self._defend)
        self.owned = False  # the name in `host` is ours
        self._defended = 0.0
        self._told: dict[tuple[str, str, int], Mapping[str, Any]] = {}
        self._seen = False
        self._listening = False

    async def announce(self, host: str, services: Sequence[Mapping[str, Any]]) -> None:
        """Find a free name that begins with `host`, and announce it with the services.

        services: {"type": "_http._tcp", "port", "name" or None, "txt"}. Raises OSError when the network is gone.
        """
        self.host = await self._free_name(host)
        self._own()
        await self.change(services)

    async def change(self, services: Sequence[Mapping[str, Any]]) -> None:
        """Announce what is new, withdraw what is not wanted any more; the rest and the host's name stay as they are."""
        wanted: dict[tuple[str, str, int], Mapping[str, Any]] = {}
        for service in services:
            name, number = service["name"] or self.host, 0
            while (service["type"], name, number) in wanted:
                number += 1
            wanted[service["type"], name, number] = service
        # What is awaited is a task that announces.
        for key, service in wanted.items():
            if key not in self.infos:
                info = self._info(f"{key[1]}.{service['type']}.local.", service)
                # changes the instance's name on a conflict
                await (await self.zeroconf.async_register_service(info, allow_name_change=True))
            elif self._told[key] != service:
                info = self._info(self.infos[key].name, service)
                await (await self.zeroconf.async_update_service(info))
            else:
                continue
            self.infos[key], self._told[key] = info, service
        for key in self.infos.keys() - wanted.keys():
            await (await self.zeroconf.async_unregister_service(self.infos[key]))
            del self.infos[key]
        self.zeroconf.zeroconf.registry.has_entries = True  # the host's name, if nothing else

    def _info(self, name: str, service: Mapping[str, Any]) -> ServiceInfo:
        return ServiceInfo(
            f"{service['type']}.local.",
            name,
            port=service["port"],
            properties=dict(service["txt"]),
            server=f"{self.host}.local.",
            addresses=list(self.place.addresses),
        )

    async def close(self) -> None:
        """Say goodbye to everything announced."""
        self._listen(None)
        if self.owned:
            self.owned = False
            self._tell(0)
        await self.zeroconf.async_unregister_all_services()
        await self.zeroconf.async_close()

    def status(self) -> dict[str, Any]:
        """The names in use."""
        shown = [str(read_address(one)) for one in self.place.addresses]
        services = [{"name": info.name.removesuffix(".local."), "port": info.port} for info in self.infos.values()]
        return {"host": f"{self.host}.local", "addresses": shown, "services": services}

    # -- the host's name ---------------------------------------------------------------------------------------------

    async def _free_name(self, host: str) -> str:
        await self.zeroconf.zeroconf.async_wait_for_start()
        await asyncio.sleep(random.uniform(0, _PROBE_GAP))  # devices that start together must not probe together
        for number in range(1, _NAMES + 1):
            name = host if number == 1 else f"{host[:50]}-{number}"
            if await self._is_free(name):
                return name
        raise NonUniqueNameException

    async def _is_free(self, name: str) -> bool:
        self.host, self._seen = name, False
        self._listen(DNSQuestion(f"{name}.local.", _ANY, _IN))
        for _ in range(_PROBES):
            self.check()
            await asyncio.sleep(_PROBE_GAP)
            if self._seen:
                return False
        return True

    def _defend(self, packets: Sequence[DNSIncoming]) -> None:
        """Answer those who ask for any record of our name, as who probes for it does: `zeroconf` answers by type."""
        name = f"{self.host}.local.".lower()
        asked = any(
            question.type == _ANY and question.name.lower() == name
            for packet in packets
            for question in packet.questions
        )
        now = time.monotonic()
        if not self.owned or not asked or now - self._defended < _DEFENCE_GAP:
            return
        self._defended = now
        self._tell(_TTL)

    def _own(self) -> None:
        """Use the name: `zeroconf` answers for it from now on, whether or not there is a service."""
        registry = self.zeroconf.zeroconf.registry
        service = {"type": "_host._udp", "port": 0, "txt": {}}  # of which nothing is told but the host's addresses
        info = self._info(f"{self.host}._host._udp.local.", service)
        registry.servers.setdefault(f"{self.host}.local.".lower(), {})[info.key] = info
        registry.has_entries = True
        self.owned = True
        self._tell(_TTL)

    def _tell(self, seconds: int) -> None:
        """Tell everybody which addresses the name has, for so many seconds."""
        out = DNSOutgoing(_ANSWER)
        for address in self.place.addresses:
            kind = _A if len(address) == 4 else _AAAA
            out.add_answer_at_time(DNSAddress(f"{self.host}.local.", kind, _IN | _ONLY, seconds, address), 0)
        self.zeroconf.zeroconf.async_send(out)

    def check(self) -> None:
        """Ask who has our name; an answer of somebody else is a conflict. By type as well: not all responders answer a
        probe (ANY) for a host's name."""
        out = DNSOutgoing(_QUERY)
        for kind in (_ANY, _A, _AAAA):
            out.add_question(DNSQuestion(f"{self.host}.local.", kind, _IN))
        self.zeroconf.zeroconf.async_send(out)

    def _listen(self, question: DNSQuestion | None) -> None:
        """Hear what is answered, beginning with what the cache has for `question`; None: no more."""
        if self._listening:
            self.zeroconf.zeroconf.async_remove_listener(self)
        self._listening = question is not None
        if question is not None:
            self.zeroconf.zeroconf.async_add_listener(self, question)

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        """Called by `zeroconf` with every packet: does somebody else have our name?"""
        for update in records:
            record = update.new
            if (
                isinstance(record, DNSAddress)
                and record.name.lower() == f"{self.host}.local.".lower()
                and record.ttl > 0
                and record.address not in self.place.addresses
            ):
                self._seen = True
        if self._seen and self.owned:
            self.conflict()

    def async_update_records_complete(self) -> None:
        """Nothing to do at the end of a packet."""

    # -- looking around ----------------------------------------------------------------------------------------------

    async def types(self, seconds: float) -> list[str]:
        """The types of services that are announced by anybody."""
        found = await AsyncZeroconfServiceTypes.async_find(aiozc=self.zeroconf, timeout=seconds)
        return sorted(one.removesuffix(".local.") for one in found)[:_MOST]

    async def browse(self, kind: str, seconds: float) -> tuple[list[dict[str, Any]], int]:
        """The services of a type, {"name", "type", "host", "port", "addresses", "txt"}, and how many were left out
        since a name or what it stands for cannot be read."""
        names: set[str] = set()

        def changed(zeroconf: Zeroconf, service_type: str, name: str, state_change: object) -> None:
            if len(names) < _MOST:
                names.add(name)

        full = f"{kind}.local."
        browser = AsyncServiceBrowser(self.zeroconf.zeroconf, full, handlers=[changed])
        await asyncio.sleep(seconds)
        await browser.async_cancel()
        rows = await asyncio.gather(*(self._ask(full, name, kind) for name in sorted(names)))
        return [row for row in rows if row is not None], rows.count(None)

    async def _ask(self, full: str, name: str, kind: str) -> dict[str, Any] | None:
        try:
            info = AsyncServiceInfo(full, name)
            await info.async_request(self.zeroconf.zeroconf, 3000)
            return _row(info, kind)
        except (BadTypeInNameException, ValueError):  # ValueError: also text that is not Unicode
            return None


def _row(info: AsyncServiceInfo, kind: str) -> dict[str, Any]:
    """A service as JSON; what a stranger may have written is cut to size."""
    txt = list(info.decoded_properties.items())[:40]
    return {
        "name": info.name.removesuffix(f".{kind}.local.")[:100],
        "type": kind,
        "host": (info.server or "").removesuffix(".")[:260],
        "port": info.port,
        "addresses": info.parsed_scoped_addresses()[:32],
        "txt": {key[:64]: (value or "")[:256] for key, value in txt},
    }


def watch_addresses(changed: Callable[[], None]) -> socket.socket:
    """Call `changed` when the kernel says that links or addresses changed (rtnetlink(7)); close the socket to end."""
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    channel.bind((0, 0x1 | 0x10 | 0x100))  # linux/rtnetlink.h: RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR

    def readable() -> None:
        try:
            while channel.recv(64 << 10):
                pass
        except BlockingIOError:
            pass
        except OSError:
            pass  # ENOBUFS: messages were lost, which is a change as well
        changed()

    asyncio.get_running_loop().add_reader(channel, readable)
    return channel
