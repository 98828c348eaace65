"""The part `change`: what is on trial or being undone, and how people end it. The work is `daemon.core.change`'s."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from common.tomlfile import Strict
from daemon.core.method import ADMINS, Caller, Method, Nothing
from daemon.core.part import Context

if TYPE_CHECKING:
    from daemon.parts.change.answers import Confirmed, Reverted, Trials

_SECONDS = 130.0  # rules with long lists take their time on a small board


class Which(Strict):
    """A change by its number; without one the only one there is."""

    change: Annotated[
        str | None, Field(pattern=r"^[0-9]{1,12}$", description="its number, such as 12; none: the only one")
    ] = None


class Ended(Which):
    """How it is to be undone."""

    give_up: Annotated[
        bool, Field(strict=True, description="what cannot be undone stays as it is, and its part can be changed again")
    ] = False


class Change:
    """See the module."""

    name = "change"

    def __init__(self, context: Context) -> None:
        self.changes = context.changes

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return (
            Method("change.list", "Changes that are on trial, or are being undone.", self._list),
            Method(
                "change.confirm",
                "Keep a change that is on trial.",
                self._confirm,
                ADMINS,
                Which,
                changes=True,
                seconds=_SECONDS,
            ),
            Method(
                "change.revert",
                "Undo a change that is on trial, or try once more to undo one that is being undone.",
                self._revert,
                ADMINS,
                Ended,
                changes=True,
                seconds=_SECONDS,
            ),
        )

    async def start(self) -> None:
        """The daemon has opened the journal already."""

    async def stop(self) -> None:
        """The daemon closes it."""

    def status(self) -> Mapping[str, Any]:
        """What there is, and what could not be undone or read."""
        return {"changes": self.changes.rows(), "problems": list(self.changes.problems)}

    async def _list(self, _: Caller, __: Nothing) -> Trials:
        return {"changes": self.changes.rows(), "problems": list(self.changes.problems)}

    async def _confirm(self, caller: Caller, which: Which) -> Confirmed:
        return await self.changes.confirm(caller, self.changes.find(number=which.change))

    async def _revert(self, caller: Caller, which: Ended) -> Reverted:
        record = self.changes.find(number=which.change, undoing=True)
        return await self.changes.revert(record, f"by {caller.name}", give_up=which.give_up)
