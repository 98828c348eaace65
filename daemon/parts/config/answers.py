"""What the methods `config.*` answer."""

from typing import Annotated

from typing_extensions import TypedDict

from daemon.core.answers import Bytes, UnixTime
from daemon.core.change.answers import Made


class FileRow(TypedDict):
    """A file of the configuration."""

    path: Annotated[str, "below /etc/mixos"]
    size: Annotated[Bytes, "of the file"]


class Content(TypedDict):
    """A file and what is in it."""

    path: Annotated[str, "below /etc/mixos"]
    text: Annotated[str, "all of it"]


Changed = TypedDict(
    "Changed",
    {
        "changed-files": Annotated[list[str], "below /etc/mixos"],
        "apply": Annotated[list[str], "the methods that put them in force"],
    },
)


class Written(Made, Changed):
    """What was done."""


class Taken(Written):
    """What was removed."""

    path: Annotated[str, "below /etc/mixos"]


class Undone(Written):
    """What was put back."""

    revision: Annotated[int, "to which revision"]
    stays: Annotated[list[str], "files that differ and are too long for the history to keep: they are as they were"]


class RevisionRow(TypedDict):
    """The configuration at one moment."""

    id: Annotated[int, "its number; the first is 1"]
    at: Annotated[UnixTime, "when it was recorded"]
    who: Annotated[str, "who changed it"]
    why: Annotated[str, "what was done"]
    files: Annotated[list[str], "that differ from the revision before"]


class Difference(TypedDict):
    """How two revisions differ."""

    diff: Annotated[str, "a unified diff; empty when they do not"]
