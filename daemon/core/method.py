"""What a client can call: a name, who may call it, its parameters as a model, and a handler.

Every part of the daemon offers its methods as a list of `Method`; the servers (JSON-RPC, D-Bus) and the generated
reference are made from nothing else.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast, get_args

from pydantic import BaseModel, SecretBytes, SecretStr

from common.tomlfile import Strict


class Role(enum.StrEnum):
    """Who someone is to this device. No order: what a role may do is said by each method."""

    ADMIN = "admin"  # everything, including what gives root
    OPERATOR = "operator"  # day-to-day running: services, network state, logs; nothing that grants rights
    VIEWER = "viewer"  # looks, changes nothing
    AGENT = "agent"  # a program that works inside sandboxes


EVERYONE = frozenset(Role)
PEOPLE = frozenset({Role.ADMIN, Role.OPERATOR, Role.VIEWER})
OPERATORS = frozenset({Role.ADMIN, Role.OPERATOR})
ADMINS = frozenset({Role.ADMIN})


class Caller(NamedTuple):
    """Who calls, as the kernel recorded it (unix(7), SO_PEERCRED); `name` and `origin` are for the audit log.

    name: the account, with the fingerprint of the SSH key where it is known; origin: "local" or "ssh ADDRESS".
    """

    role: Role
    uid: int
    gid: int
    pid: int
    name: str
    origin: str
    connection: str = ""


class Nothing(Strict):
    """Parameters of a method that takes none."""


Params = TypeVar("Params", bound=Strict)
Result = TypeVar("Result")
Handler = Callable[[Caller, Params], Awaitable[Result]]
StreamHandler = Callable[[Caller, Params], AsyncIterator[Result]]


class _Fields(NamedTuple):
    name: str
    summary: str
    handler: Handler[Any, object] | StreamHandler[Any, object]
    roles: frozenset[Role]
    params: type[Strict]
    changes: bool
    seconds: float
    stable: bool
    secret: bool


class Method(_Fields):
    """One callable thing.

    name: `part.verb` ("service.start"). params: a frozen strict model, given to the handler. changes: whether it
    changes anything: then the call is audited, and may carry an idempotency key. The handler returns what JSON can say;
    an asynchronous generator makes the method a stream, whose items follow the answer. Handlers raise MixosError for
    every failure that is not a defect of ours. seconds: the longest that a call may take (not for streams); then the
    handler is cancelled. stable: kept as it is while the API's version stays. secret: the answer must not be kept on
    disk. Secrets among the parameters are `pydantic.SecretStr`, which the audit shows as stars. Either way the method
    takes no idempotency key, whose record would hold the answer and a digest of the parameters. What the handler's
    annotation says that it returns (a stream: yields) is the type of the answer, from which the reference, the JSON
    schemas and the D-Bus signatures are made: see `daemon.core.answers`.
    """

    __slots__ = ()

    def __new__(
        cls,
        name: str,
        summary: str,
        handler: Handler[Params, object] | StreamHandler[Params, object],
        roles: frozenset[Role] = PEOPLE,
        params: type[Params] = cast(Any, Nothing),  # noqa: B008
        changes: bool = False,
        seconds: float = 10.0,
        stable: bool = True,
        secret: bool = False,
    ) -> Method:
        """Typed, so that mypy compares the handler with the parameters, in a list of methods as well."""
        return super().__new__(cls, name, summary, handler, roles, params, changes, seconds, stable, secret)

    @property
    def part(self) -> str:
        """The part that it belongs to: what stands before the first dot; "manager" for the few without one."""
        return self.name.partition(".")[0] if "." in self.name else "manager"

    @property
    def takes_key(self) -> bool:
        """Whether a call may carry an idempotency key, for which its answer and a digest of its parameters are kept."""
        return self.changes and not self.stream and not self.secret and not holds_secrets(self.params)

    @property
    def stream(self) -> bool:
        """Whether the handler gives a sequence over time instead of one answer."""
        return inspect.isasyncgenfunction(self.handler)


@cache
def holds_secrets(annotation: Any) -> bool:
    """Whether a value of this type can have a secret in it, however deep: a model, a list of models, an option, …"""
    if isinstance(annotation, type) and issubclass(annotation, SecretStr | SecretBytes):
        return True
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return any(holds_secrets(cast(Any, field.annotation)) for field in annotation.model_fields.values())
    return any(holds_secrets(inner) for inner in get_args(annotation))
