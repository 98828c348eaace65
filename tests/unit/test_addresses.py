"""Addresses in text from outside: nothing stands behind a `%`, in whatever is made of it (files, words of shells)."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from common import addresses, netvalues, values
from common.errors import SettingsError
from common.settings.model import Settings, parse
from daemon.parts.firewall.values import parse_address as firewall_address
from daemon.parts.firewall.values import parse_network as firewall_network
from daemon.parts.proxy.part import parse_exception
from daemon.parts.vpn.wgquick import _allowed

READERS: dict[str, tuple[Callable[[str], object], str]] = {
    "address": (addresses.address, "{}"),
    "interface": (addresses.interface, "{}/64"),
    "network": (addresses.network, "{}/128"),
    "host": (netvalues.host_address, "{}"),
    "interface-address": (netvalues.interface_address, "{}/64"),
    "network-text": (netvalues.network, "{}/128"),
    "endpoint": (netvalues.endpoint, "[{}]:80"),
    "with-port": (lambda text: netvalues.with_port(text, 80), "{}"),
    "unit": (values.address, "[{}]:80"),
    "no-proxy": (parse_exception, "{}"),
    "no-proxy-network": (parse_exception, "{}/128"),
    "firewall": (firewall_address, "{}"),
    "firewall-network": (firewall_network, "{}/128"),
    "allowed-ips": (_allowed, "{}/128"),
    "time": (lambda text: parse(f"[time]\nservers = [{json.dumps(text)}]\n".encode(), "x", Settings()), "{}"),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("zone", ["eth0", "\nserver evil.test", "$(reboot)", "x\0", ""])
# case: H13
def test_an_address_has_no_zone(name: str, zone: str) -> None:
    read, form = READERS[name]
    read(form.format("fd00::1"))
    with pytest.raises((ValueError, SettingsError)):
        read(form.format(f"fe80::1%{zone}"))
