"""What every method answers that alters the device."""

from typing import Annotated, Literal

from typing_extensions import TypedDict

from daemon.core.answers import WholeSeconds


class Problem(TypedDict):
    """A file that was changed and is not in force."""

    method: Annotated[str, "what would put it in force"]
    reason: Annotated[str, "why it did not, as a stable word"]
    message: Annotated[str, "the same for people"]


Made = TypedDict(
    "Made",
    {
        "changed": Annotated[bool, "something was changed, or would be"],
        "applied": Annotated[bool, "it was done; false with dry-run"],
        "diff": Annotated[str, "what changes in the kernel, as a unified diff, where that tells more than steps"],
        "files": Annotated[str, "with dry-run: what would change in files, as a unified diff; secrets are only named"],
        "steps": Annotated[list[str], "what was done, or would be, for people"],
        "cuts-off": Annotated[bool, "it could cut the caller's own connection"],
        "confirm": Annotated[WholeSeconds | None, "on trial: what is left to confirm it; null: it is for good"],
        "change": Annotated[str | None, "on trial: the number of the change"],
        "problems": Annotated[list[Problem], "changed files that are not in force"],
    },
)


class Confirmed(TypedDict):
    """A change that is for good now."""

    confirmed: Annotated[Literal[True], "it is"]
    change: Annotated[str, "its number"]
    problems: Annotated[list[Problem], "changed files that are not in force"]


class Reverted(TypedDict):
    """A change that was undone, or given up."""

    reverted: Annotated[bool, "all of it was undone; false: it was given up"]
    change: Annotated[str, "its number"]
    stays: Annotated[list[str], "given up: the parts that did not go back, and why"]


class Waiting(TypedDict):
    """A change that is not over."""

    change: Annotated[str, "its number"]
    what: Annotated[str, "what was done"]
    who: Annotated[str, "who did it"]
    parts: Annotated[list[str], "the parts that it concerns"]
    state: Annotated[str, "trial, or undoing: going back did not succeed yet and is tried again"]
    seconds: Annotated[WholeSeconds, "what is left to confirm it"]
