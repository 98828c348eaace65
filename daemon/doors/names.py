"""Names on D-Bus, of parts and methods, and schemas. Imports none of our types: the process of the door uses it."""

from __future__ import annotations

from daemon.core.schema import Schema

BUS_NAME = "org.mixos"
ROOT_PATH = "/org/mixos"
TEXT: Schema = {"type": "string"}
FACTS: Schema = {"type": "object"}
NOTHING: Schema = {"type": "null"}
ANYTHING: Schema = {}
# The signal `Event` of every interface.
EVENT = (("what", TEXT), ("subject", TEXT), ("at", {"type": "number"}), ("data", FACTS))


def camel(name: str) -> str:
    """`add-peer` → `AddPeer`, `rule.add` → `RuleAdd`."""
    return "".join(word[:1].upper() + word[1:] for word in name.replace(".", "-").split("-"))


def interface(part: str) -> str:
    """The interface's name of a part."""
    return f"{BUS_NAME}.{camel(part)}1"


def path(part: str) -> str:
    """The object's path of a part."""
    return ROOT_PATH if part == "manager" else f"{ROOT_PATH}/{part.replace('-', '_')}"
