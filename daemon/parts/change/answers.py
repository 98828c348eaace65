"""What the methods `change.*` answer."""

from typing import Annotated

from typing_extensions import TypedDict

from daemon.core.change.answers import Confirmed as Confirmed
from daemon.core.change.answers import Reverted as Reverted
from daemon.core.change.answers import Waiting


class Trials(TypedDict):
    """What waits."""

    changes: Annotated[list[Waiting], "those that are on trial, or are being undone"]
    problems: Annotated[list[str], "what could not be undone or read, for people"]
