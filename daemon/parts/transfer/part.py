"""The methods `transfer.*`: content of a call, in pieces, for callers that cannot hand over a descriptor."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from common.errors import RefusedError
from common.tomlfile import Strict
from daemon.core.dispatch import Dispatcher
from daemon.core.method import EVERYONE, Caller, Method, Nothing
from daemon.core.spool import IDLE, PIECE, Spool, Transfer
from daemon.core.transfer import MAX_ID, accepted

if TYPE_CHECKING:
    from daemon.parts.transfer.answers import Begun, Received, Row, State

Ident = Annotated[str, Field(max_length=MAX_ID, description="what transfer.begin answered")]


class Begin(Strict):
    """Parameters of `transfer.begin`."""

    purpose: Annotated[str, Field(max_length=64, description="the method that will be given the content")]
    size: Annotated[int, Field(ge=1, description="bytes in all")]
    sha256: Annotated[
        str | None, Field(pattern="^[0-9a-f]{64}$", description="what the whole must have, 64 digits of 0-9 a-f")
    ] = None


class Write(Strict):
    """Parameters of `transfer.write`."""

    id: Ident
    offset: Annotated[int, Field(ge=0, description="bytes before this piece")]
    data: Annotated[str, Field(max_length=PIECE // 3 * 4 + 4, description=f"base64 of at most {PIECE >> 10} KiB")]


class Named(Strict):
    """Parameters of `transfer.status` and `transfer.cancel`."""

    id: Ident


class TransferPart:
    """The part. A transfer is for one method, whose roles may begin it and whose limit holds for it."""

    name = "transfer"

    def __init__(self, dispatcher: Dispatcher, spool: Spool) -> None:
        self._dispatcher = dispatcher
        self._spool = spool
        self._timer: asyncio.TimerHandle | None = None

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return (
            Method("transfer.begin", "Begin to send the content of a later call.", self._begin, EVERYONE, Begin),
            Method("transfer.write", "Send a piece of it.", self._write, EVERYONE, Write),
            Method("transfer.status", "How much of it is there.", self._status, EVERYONE, Named),
            Method("transfer.list", "One's own transfers.", self._list, EVERYONE),
            Method("transfer.cancel", "Forget it.", self._cancel, EVERYONE, Named),
        )

    async def start(self) -> None:
        """An earlier daemon's transfers ended with it."""
        self._spool.clear()

    async def stop(self) -> None:
        """Transfers end with the daemon."""
        if self._timer is not None:
            self._timer.cancel()
        self._spool.clear()

    def status(self) -> Mapping[str, Any]:
        """How many transfers there are, and their bytes."""
        return self._spool.status()

    async def _begin(self, caller: Caller, params: Begin) -> Begun:
        method = self._dispatcher.find(caller, params.purpose)
        limits = [one.most for one in accepted(method.params).values()]
        if not limits:
            raise RefusedError(f"{params.purpose} takes no content", reason="transfer-purpose")
        if None not in limits and params.size > (most := max(filter(None, limits))):
            raise RefusedError(f"{params.purpose} takes at most {most} bytes", reason="transfer-too-big")
        name = self._spool.begin(caller.uid, params.purpose, params.size, params.sha256)
        self._expire_later()
        return {"id": name, "piece": PIECE}

    async def _write(self, caller: Caller, params: Write) -> Received:
        try:
            data = base64.b64decode(params.data, validate=True)
        except binascii.Error as error:
            raise RefusedError("the piece is not base64", reason="transfer-data") from error
        return {"received": self._spool.write(caller.uid, params.id, params.offset, data)}

    async def _status(self, caller: Caller, params: Named) -> State:
        return _state(self._spool.get(caller.uid, params.id))

    async def _list(self, caller: Caller, _: Nothing) -> list[Row]:
        return [{"id": name, **_state(one)} for name, one in self._spool.of(caller.uid).items()]

    async def _cancel(self, caller: Caller, params: Named) -> None:
        self._spool.cancel(caller.uid, params.id)

    def _expire_later(self) -> None:
        """Free the space of what nobody uses any more, also when nobody calls."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(IDLE / 2, self._expire)

    def _expire(self) -> None:
        self._timer = None
        self._spool.expire()
        if self._spool.status()["transfers"]:
            self._expire_later()


def _state(one: Transfer) -> State:
    return {"purpose": one.purpose, "size": one.size, "received": one.received}
