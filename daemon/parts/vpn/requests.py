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
    """A tunnel."""

    interface: InterfaceName | None = Field(default=None, description="the tunnel; none: the only one")


class OfPeer(OfInterface):
    """A peer of a tunnel."""

    peer: PeerName = Field(description="the peer's name")


class ChangeInterface(Wish, OfInterface):
    """A tunnel that is to be changed."""


class ChangePeer(Wish, OfPeer):
    """A peer that is to be changed."""


class Init(Wish):
    """A new tunnel."""

    name: InterfaceName = Field(default="wg0", description="the interface's name")
    addresses: tuple[InterfaceAddress, ...] = Field(
        default=(), description="with prefix length; none: private ones are chosen at random"
    )
    port: Annotated[int, Field(ge=1, le=65535, strict=True)] = Field(default=51820, description="the UDP port")
    endpoint: Annotated[str, AfterValidator(_place)] | None = Field(
        default=None, description="how clients reach this device: a name or address, port optional"
    )
    client_dns: tuple[HostAddress, ...] = Field(default=(), description="name servers of clients")
    client_routes: tuple[NetworkText, ...] = Field(
        default=(), description="what clients send into the tunnel; none: its own networks"
    )


class Shown(Strict):
    """What the caller does with a configuration that is told once."""

    config_bytes: Annotated[int, Field(ge=1, strict=True)] | None = Field(
        default=None, description="refuse, and change nothing, when a configuration would be longer; none: any length"
    )


class AddPeer(ChangePeer, Shown):
    """A new peer."""

    public_key: str | None = Field(default=None, description="in base64; none: a pair of keys is made")
    allowed_ips: tuple[NetworkText, ...] = Field(
        default=(),
        description="networks behind it; without an address in the tunnel's networks it gets the next free ones",
    )
    endpoint: EndpointText | None = Field(default=None, description="where it is; none: it begins")
    keepalive: Seconds = Field(default=0, description="seconds between packets that keep the way open; 0: none")
    psk: bool = Field(default=False, description="with a preshared key as well")
    keep_key: bool = Field(default=False, description="keep its private key here, so that vpn.config can tell it")


class Rotate(ChangeInterface, Shown):
    """New keys."""

    peer: PeerName | None = Field(default=None, description="whose; none: the tunnel's own")
    key: bool = Field(default=False, description="of a peer: a new pair of keys, not only a preshared key")


class Import(Wish):
    """A file of wg-quick."""

    name: InterfaceName = Field(description="the interface's name")
    text: Annotated[SecretStr, Field(max_length=MAX_BYTES)] = Field(description="what is in the file")
    file: Annotated[str, Field(max_length=200)] = Field(default="the file", description="its name, for messages")
