"""What the methods `firewall.*` answer."""

from typing import Annotated, Literal, NotRequired

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, WholeSeconds
from daemon.core.change.answers import Confirmed as Confirmed
from daemon.core.change.answers import Made as Made
from daemon.core.change.answers import Reverted as Reverted

FileState = Literal["same", "different", "undone", "broken", "missing"]


class Counter(TypedDict):
    """What a rule has met."""

    packets: Annotated[int, "since the rules were loaded"]
    bytes: Annotated[Bytes, "in these packets"]


class Trial(TypedDict):
    """A change that is on trial."""

    seconds: Annotated[WholeSeconds, "what is left to confirm it"]
    by: Annotated[str, "who made it"]


class Zone(TypedDict):
    """Where packets come from."""

    name: Annotated[str, "the zone's name"]
    interfaces: Annotated[list[str], "whose packets belong to it; * stands for any ending"]
    sources: Annotated[list[str], "networks whose packets belong to it"]
    allow: Annotated[list[str], "services that are permitted"]
    policy: Annotated[Literal["deny", "allow"], "what becomes of everything else"]


class Confined(TypedDict):
    """A unit with rules."""

    unit: Annotated[str, "the unit's name"]
    state: Annotated[Literal["waiting", "confined", "unsupported"], "waiting: it does not run"]


Status = TypedDict(
    "Status",
    {
        "state": Annotated[Literal["on", "changed", "off"], "changed: the kernel has other rules than the wanted ones"],
        "drift": Annotated[str, "how they differ, as a unified diff"],
        "file": Annotated[FileState, "how firewall.toml stands to what is in force; missing: the default is"],
        "problem": Annotated[str | None, "why the file is not in force"],
        "confirm": Annotated[Trial | None, "a change that is on trial"],
        "default-zone": Annotated[str, "the zone of all packets that belong to no other"],
        "zones": Annotated[list[Zone], "where packets come from"],
        "denied": Annotated[Counter, "what was denied"],
        "services": Annotated[list[str], "names of services that there are"],
        "lists": Annotated[dict[str, int], "list → how many ranges of addresses it has"],
        "units": Annotated[list[Confined], "units with rules"],
        "cgroup-match": Annotated[bool, "this kernel can tell the packets of units"],
    },
)

Entry = TypedDict(
    "Entry",
    {
        "name": Annotated[str, "kind and name, such as rules.web; zones.NAME for a service that a zone allows"],
        "service": NotRequired[Annotated[str, "rules, zones: the service, or ports"]],
        "action": NotRequired[Annotated[Literal["allow", "deny", "reject"], "rules, zones: what becomes of it"]],
        "zone": NotRequired[Annotated[str, "rules, zones, forwards: where it comes from"]],
        "from": NotRequired[Annotated[list[str] | str, "rules, forwards: networks and lists; nat: the zone"]],
        "limit": NotRequired[Annotated[str, "rules: new connections of each source"]],
        "port": NotRequired[Annotated[str, "forwards: what arrives here"]],
        "to": NotRequired[Annotated[str, "forwards: the host; nat: the zone"]],
        "to-port": NotRequired[Annotated[int, "forwards: the port there, when it is another one"]],
        "masquerade": NotRequired[Annotated[bool, "nat: it leaves with this device's address"]],
        "addresses": NotRequired[Annotated[list[str], "lists: the addresses in the file itself"]],
        "file": NotRequired[Annotated[str, "lists: the file with more of them"]],
        "block": NotRequired[Annotated[bool, "lists: all of them are blocked"]],
        "packets": NotRequired[Annotated[int, "since the rules were loaded"]],
        "bytes": NotRequired[Annotated[Bytes, "in these packets"]],
    },
)

Entries = TypedDict(
    "Entries",
    {
        "entries": Annotated[list[Entry], "every entry of the policy"],
        "default-zone": Annotated[str, "the zone of all packets that belong to no other"],
        "counters": Annotated[dict[str, Counter], "comment of a rule → what it has met"],
    },
)


class Difference(TypedDict):
    """What `firewall.apply` would change."""

    diff: Annotated[str, "in the kernel, as a unified diff"]
    files: Annotated[list[str], "files with addresses that the policy uses"]


class Verdict(TypedDict):
    """What becomes of a packet."""

    packet: Annotated[str, "protocol and port"]
    action: Annotated[Literal["accept", "deny", "reject", "forward"], "deny: without an answer"]
    by: Annotated[str, "the entry that decides"]
    zone: Annotated[str | None, "where it comes from"]
    limit: Annotated[str | None, "only so many new connections of each source"]
    to: Annotated[str | None, "forward: where to"]
