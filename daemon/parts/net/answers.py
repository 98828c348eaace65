"""What the methods `net.*` answer."""

from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, JsonObject, Seconds, UnixTime, WholeSeconds
from daemon.core.change.answers import Confirmed as Confirmed
from daemon.core.change.answers import Made
from daemon.core.change.answers import Reverted as Reverted


class Interface(TypedDict):
    """A network interface."""

    name: Annotated[str, "as the kernel calls it"]
    kind: Annotated[str, "hardware, bridge, vlan, wireguard and so on"]
    state: Annotated[str, "of the kernel: up, down, dormant, …"]
    by: Annotated[Literal["network.toml", "daemon", "settings"], "who looks after it"]
    mode: Annotated[str | None, "how it gets its addresses, of one in network.toml"]
    mac: Annotated[str, "its MAC address; empty without one"]
    mtu: Annotated[int, "the longest packet in bytes"]
    addresses: Annotated[list[str], "with prefix length"]
    received: Annotated[Bytes, "since it is there"]
    sent: Annotated[Bytes, "since it is there"]


class Actual(Interface):
    """An interface with its neighbours."""

    bridge: Annotated[str | None, "the bridge that it is a port of"]
    parent: Annotated[str | None, "of a VLAN: the interface below"]
    vlan: Annotated[int | None, "of a VLAN: its number"]
    ports: Annotated[list[str], "of a bridge: its ports"]


class Route(TypedDict):
    """A route."""

    to: Annotated[str, "the network"]
    via: Annotated[str | None, "the next router"]
    metric: Annotated[int, "of two routes the lower one is taken"]
    table: Annotated[int, "of the kernel; 254 is the main one"]


class Shown(TypedDict):
    """One interface."""

    name: Annotated[str, "as the kernel calls it"]
    wanted: Annotated[JsonObject | None, "its keys in network.toml; null when the file does not name it"]
    actual: Annotated[Actual | None, "what is; null when it is not there"]
    routes: Annotated[list[Route], "through it"]


Status = TypedDict(
    "Status",
    {
        "file": Annotated[Literal["ok", "trial", "reverted", "error"], "what of network.toml is in force"],
        "problem": Annotated[str | None, "why it is not"],
        "managed": Annotated[list[str], "interfaces that the file names"],
        "confirm-seconds": Annotated[WholeSeconds | None, "on trial: what is left to confirm it"],
    },
)


class Report(Status):
    """What the network is like."""

    changed: Annotated[bool, "the file says something else than what is in force"]
    missing: Annotated[list[str], "interfaces that the file needs and that are not there"]
    dns: Annotated[list[str], "name servers that are asked"]
    interfaces: Annotated[list[Interface], "all but the loopback"]


class Checked(TypedDict):
    """What `net.apply` would do."""

    steps: Annotated[list[str], "for people"]
    missing: Annotated[list[str], "interfaces that the file needs and that are not there"]


Rest = TypedDict(
    "Rest",
    {
        "missing": Annotated[list[str], "interfaces that the file needs and that are not there"],
        "confirm-seconds": Annotated[WholeSeconds, "on trial: what is left to confirm it; 0: for good"],
    },
)


class Applied(Made, Rest):
    """What was done."""


class Edited(TypedDict):
    """What was written."""

    file: Annotated[str, "into which file"]
    steps: Annotated[list[str], "what net.apply would do now, for people"]


Clock = TypedDict(
    "Clock",
    {
        "now": Annotated[UnixTime, "the time"],
        "synchronised": Annotated[bool, "somebody steers the clock"],
        "offset": NotRequired[Annotated[Seconds, "still to be corrected"]],
        "maximum-error": NotRequired[Annotated[Seconds, "the most that it is wrong"]],
        "estimated-error": NotRequired[Annotated[Seconds, "what it is wrong, probably"]],
        "frequency": NotRequired[Annotated[float, "correction of its speed, in parts per million"]],
        "running": Annotated[bool, "an ntpd runs"],
        "servers": Annotated[list[str], "the servers that it asks"],
    },
)
