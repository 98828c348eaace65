"""What the methods `vpn.*` answer."""

from typing import Annotated, Literal

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, WholeSeconds
from daemon.core.change.answers import Made

Peer = TypedDict(
    "Peer",
    {
        "name": Annotated[str, "as vpn.toml calls it"],
        "public-key": Annotated[str, "in base64"],
        "state": Annotated[
            Literal["online", "stale", "never", "down"],
            "online: a session that carries packets; never: no handshake yet; down: the tunnel is",
        ],
        "handshake-age": Annotated[WholeSeconds | None, "since the last one; null for none, or when the clock was set"],
        "endpoint": Annotated[str | None, "where packets go; as long as nothing came, as the file says"],
        "allowed-ips": Annotated[list[str], "networks behind it"],
        "received": Annotated[Bytes, "from it"],
        "sent": Annotated[Bytes, "to it"],
        "keepalive": Annotated[WholeSeconds, "between packets that keep the way open; 0: none"],
        "psk": Annotated[bool, "there is a preshared key"],
        "kept-key": Annotated[bool, "its private key is kept here"],
    },
)

TunnelRow = TypedDict(
    "TunnelRow",
    {
        "name": Annotated[str, "the interface"],
        "wanted": Annotated[Literal["up", "down"], "as vpn.toml says"],
        "addresses": Annotated[list[str], "with prefix length"],
        "state": Annotated[Literal["up", "down"], "as it is"],
        "public-key": Annotated[str | None, "in base64; null while it is down"],
        "port": Annotated[int, "UDP port that it listens on"],
        "problem": Annotated[str | None, "why it is not as wanted"],
        "peers": Annotated[list[Peer], "the other sides"],
    },
)


class Report(TypedDict):
    """All tunnels."""

    interfaces: Annotated[list[TunnelRow], "by the order of vpn.toml"]


class PeerConfig(TypedDict):
    """What the other side needs. It holds a private key."""

    peer: Annotated[str, "the peer's name"]
    config: Annotated[str, "a file for wg-quick"]


class Exported(TypedDict):
    """This device's side, without secrets."""

    interface: Annotated[str, "the tunnel"]
    config: Annotated[str, "a file for wg-quick"]


class Changed(Made):
    """What became of the tunnel. What does not work then is told, the change itself is made."""

    interface: Annotated[str, "the tunnel"]
    state: Annotated[Literal["up", "down"], "as it is now"]
    problem: Annotated[str | None, "why it is not up"]
    warnings: Annotated[list[str], "what is hardly meant so"]


Key = TypedDict("Key", {"public-key": Annotated[str, "this device's, in base64"]})


class New(Changed, Key):
    """A new tunnel."""

    addresses: Annotated[list[str], "with prefix length"]


class PeerChanged(Changed):
    """What became of a peer."""

    peer: Annotated[str, "the peer's name"]


class Added(PeerChanged):
    """A new peer."""

    config: Annotated[str, "a file for wg-quick, with the private key if it was made here: it is told once"]


class Rotated(PeerChanged):
    """New keys of a peer."""

    configs: Annotated[dict[str, str], "peer → what its side must be told, for wg-quick"]


class RotatedOwn(Changed, Key):
    """A new key of the tunnel itself."""

    configs: Annotated[dict[str, str], "peer → what its side must be told, for wg-quick"]


class Applied(Made):
    """What became of all tunnels."""

    up: Annotated[list[str], "tunnels that are up"]
    down: Annotated[dict[str, str], "tunnel → why it is not up"]


class Imported(Changed):
    """A tunnel of another program."""

    peers: Annotated[list[str], "names that its peers were given"]
