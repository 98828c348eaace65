"""JSON schemas of answers, as plain data: whoever has one needs none of our types. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

Schema = dict[str, Any]


def present(found: Schema) -> Schema:
    """The schema of a value that is not null."""
    options = [one for one in found.get("anyOf", ()) if one.get("type") != "null"]
    if not options:
        return found
    notes = {name: note for name, note in found.items() if name != "anyOf"}
    return {**options[0], **notes} if len(options) == 1 else {**notes, "anyOf": options}


class Row(NamedTuple):
    """A member of an answer. path: `disks[].size`: `[]` for each of a list, `{}` for each of an object's values."""

    path: str
    schema: Schema
    required: bool

    @property
    def meaning(self) -> str:
        """What the member's author says, with the unit."""
        unit = self.schema.get("unit") or present(self.schema).get("unit")
        words = [str(self.schema.get("description", "")), f"in {unit}" if unit else ""]
        return ", ".join(word for word in words if word)


def rows(found: Schema, path: str = "") -> Iterator[Row]:
    """Every member of the records in an answer, each record's before those inside of them."""
    for option in found.get("anyOf", ()):
        yield from rows(option, path)
    if isinstance(found.get("items"), dict):
        yield from rows(found["items"], f"{path}[]")
    if isinstance(found.get("additionalProperties"), dict):
        yield from rows(found["additionalProperties"], f"{path}{{}}")
    members = found.get("properties", {})
    before = f"{path}." if path else ""
    for name, one in members.items():
        yield Row(f"{before}{name}", one, name in found["required"])
        yield from rows(one, f"{before}{name}")
