"""What the methods `mdns.*` answer."""

from typing import Annotated, NotRequired

from typing_extensions import TypedDict


class Switched(TypedDict):
    """Whether the device announces itself."""

    enabled: Annotated[bool, "mdns.toml says that it does"]


class Named(TypedDict):
    """A service that is announced."""

    name: Annotated[str, "its name and type"]
    port: Annotated[int, "where it is"]


class Status(Switched):
    """What is announced. Members that are missing: nothing is announced, or the process does not run."""

    running: Annotated[bool, "the process that announces runs"]
    wanted: NotRequired[Annotated[str, "the host name that it would like to have"]]
    conflicts: NotRequired[Annotated[int, "how often somebody else had the name"]]
    problem: NotRequired[Annotated[str | None, "why nothing is announced"]]
    host: NotRequired[Annotated[str, "the host name that it has"]]
    addresses: NotRequired[Annotated[list[str], "the addresses that the name stands for"]]
    services: NotRequired[Annotated[list[Named], "what is announced"]]


class Service(TypedDict):
    """A service that somebody announces. All of this is strangers' text."""

    name: Annotated[str, "as people see it"]
    type: Annotated[str, "such as _http._tcp"]
    host: Annotated[str, "the host that has it; empty when nobody says"]
    port: Annotated[int | None, "where it is"]
    addresses: Annotated[list[str], "of the host"]
    txt: Annotated[dict[str, str], "what else it says"]


class Found(TypedDict):
    """What others announce."""

    types: NotRequired[Annotated[list[str], "the types of services that there are, when no type was given"]]
    services: NotRequired[Annotated[list[Service], "the services of the type, by name"]]
    skipped: NotRequired[Annotated[int, "services that were left out: their names or records cannot be read"]]
