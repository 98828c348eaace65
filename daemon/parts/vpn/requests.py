"""Parameters of the methods of the part "vpn"."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr

from common import netvalues as values
from common.netvalues import EndpointText, HostAddress, InterfaceAddress, InterfaceName, NetworkText, PeerName
from common.tomlfile import Strict
from daemon.core.change.applier import Wish
from daemon.parts.vpn.model import Seconds
from daemon.parts.vpn.wgquick import MAX_BYTES


def _place(text: str) -> str:
    values.with_port(text, 1)
    return text


class OfInterface(Strict):
    """A tunnel; null for the only one."""

    interface: InterfaceName | None = None


class OfPeer(OfInterface):
    """A peer of a tunnel."""

    peer: PeerName


class ChangeInterface(Wish, OfInterface):
    """A tunnel that is to be changed."""


class ChangePeer(Wish, OfPeer):
    """A peer that is to be changed."""


class Init(Wish):
    """`vpn.init`. addresses: chosen at random when empty; endpoint: how clients reach this device, port optional."""

    name: InterfaceName = "wg0"
    addresses: tuple[InterfaceAddress, ...] = ()
    port: Annotated[int, Field(ge=1, le=65535, strict=True)] = 51820
    endpoint: Annotated[str, AfterValidator(_place)] | None = None
    client_dns: tuple[HostAddress, ...] = ()
    client_routes: tuple[NetworkText, ...] = ()


class AddPeer(ChangePeer):
    """`vpn.add-peer`. public-key: a pair is made when there is none; keep-key: keep its private half here."""

    public_key: str | None = None
    allowed_ips: tuple[NetworkText, ...] = ()
    endpoint: EndpointText | None = None
    keepalive: Seconds = 0
    psk: bool = False
    keep_key: bool = False


class Rotate(ChangeInterface):
    """`vpn.rotate`: without a peer the tunnel's own key; with one its preshared key, or with `key` its key pair."""

    peer: PeerName | None = None
    key: bool = False


class Import(Wish):
    """`vpn.import`. text: the file's content, a secret; file: its name, for messages."""

    name: InterfaceName
    text: Annotated[SecretStr, Field(max_length=MAX_BYTES)]
    file: Annotated[str, Field(max_length=200)] = "the file"
