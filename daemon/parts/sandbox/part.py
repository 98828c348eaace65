"""The sandbox as a part of the daemon: profiles to look at, commands to run confined, and the truth about both."""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from common.errors import NotFoundError, RefusedError
from common.tomlfile import Strict
from common.values import Name
from daemon.core.method import EVERYONE, OPERATORS, Caller, Method
from daemon.core.part import Context
from daemon.core.profiles import Profile, names, read_profile
from daemon.linux.cgroup import Tree
from daemon.linux.sandbox.policy import Changed, Network, Overlay, Policy, Shown, Word, tighten
from daemon.parts.sandbox.run import Ended, Input, Runner

Value = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00]*$")]
MAX_INPUT = 44 << 10  # characters of base64: 33 KiB; a request is one line of at most 64 KiB


class Named(Strict):
    """A profile."""

    profile: Name = "tool"


class Command(Strict):
    """A command to run. read_only, read_write: paths of the caller's own; environment: variables, of which those pass
    that the profile names; input: standard input, in base64; input_follows: and what `sandbox.input` adds."""

    command: tuple[str, ...] = Field(min_length=1, max_length=1000)
    profile: Name = "tool"
    read_only: tuple[Shown, ...] = Field(default=(), max_length=64)
    read_write: tuple[Changed, ...] = Field(default=(), max_length=64)
    network: Network | None = None
    directory: str | None = None
    overlay: Overlay = Overlay()
    environment: dict[Word, Value] = Field(default={}, max_length=64)
    input: str = Field(default="", max_length=MAX_INPUT)
    input_follows: bool = False


class More(Strict):
    """A piece of standard input, in base64, for the run whose stream began with this token; the last one has `end`."""

    token: str = Field(max_length=64)
    data: str = Field(default="", max_length=MAX_INPUT)
    end: bool = False


class Sandbox:
    """The part. runner: default, that of a device."""

    name = "sandbox"

    def __init__(self, context: Context, runner: Runner | None = None) -> None:
        self.context = context
        self.runner = runner or Runner(context, Tree(context.cgroups / ".sandboxes"))
        self._inputs: dict[str, tuple[int, Input]] = {}  # token → whose it is, where it goes

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return (
            Method("sandbox.profiles", "List the sandbox profiles.", self.profiles, EVERYONE),
            Method("sandbox.show", "Show what a profile allows.", self.show, EVERYONE, Named),
            Method(
                "sandbox.explain", "Say what of a profile is enforced on this device.", self.explain, OPERATORS, Named
            ),
            Method("sandbox.run", "Run a command in a sandbox.", self.run, OPERATORS, Command, changes=True),
            Method("sandbox.input", "Give a command that runs more to read.", self.input, OPERATORS, More),
        )

    async def start(self) -> None:
        """Sandboxes end with the client that asked for them, so there is none to take up."""
        self.runner.clear()

    async def stop(self) -> None:
        """End those that run."""
        self.runner.stop()

    def status(self) -> Mapping[str, Any]:
        """How many run."""
        return {"running": len(self.runner.running)}

    async def profiles(self, _: Caller, __: Strict) -> object:
        """`[{"name", "description", "network", "user", "seccomp", "origin", "broken"}]`."""
        return [_summary(read_profile(self.context, name)) for name in names(self.context)]

    async def show(self, _: Caller, wanted: Named) -> object:
        """The whole policy, with where it comes from."""
        profile = read_profile(self.context, wanted.profile)
        return _summary(profile) | {"policy": profile.policy.model_dump(mode="json", by_alias=True)}

    async def explain(self, caller: Caller, wanted: Named) -> object:
        """See `daemon.parts.sandbox.explain.explain`."""
        from daemon.parts.sandbox.explain import explain

        profile = read_profile(self.context, wanted.profile)
        return _summary(profile) | await explain(self.runner, profile.policy.for_account(caller.uid, caller.gid))

    async def run(self, caller: Caller, wanted: Command) -> AsyncIterator[object]:
        """Items `{"stream": 1 or 2, "data": base64}`, at the end `{"code", "timeout", "facts"}`; when input follows, at
        first `{"token"}`."""
        policy = command_policy(read_profile(self.context, wanted.profile).policy, caller, wanted)
        given = Input(_decoded(wanted.input), more=wanted.input_follows)
        token = secrets.token_hex(16)
        try:
            if wanted.input_follows:
                self._inputs[token] = (caller.uid, given)
                yield {"token": token}
            async with aclosing(self.runner.run(policy, wanted.command, given, wanted.environment)) as items:
                async for item in items:
                    if isinstance(item, Ended):
                        yield item._asdict()
                    else:
                        yield {"stream": item.stream, "data": base64.b64encode(item.data).decode()}
        finally:
            self._inputs.pop(token, None)

    async def input(self, caller: Caller, piece: More) -> bool:
        """Whether it was taken; if not, the command has not read what came before, and the piece may be sent again.

        Raises NotFoundError `sandbox-gone` when this caller has no such run (any more).
        """
        uid, given = self._inputs.get(piece.token, (caller.uid, None))
        if given is None or uid != caller.uid:
            raise NotFoundError("this command does not run any more", reason="sandbox-gone")
        data = _decoded(piece.data)
        if data and piece.end:
            raise RefusedError("the end of the input is a piece without data", reason="sandbox-input")
        return await given.put(data) if data or piece.end else True


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise RefusedError("input is not base64", reason="sandbox-input") from error


def command_policy(profile: Policy, caller: Caller, wanted: Command) -> Policy:
    """The profile for one command: the caller's overlay takes away, the caller's own paths are added.

    The paths are looked up with the account that the command gets, never with root's rights. Raises RefusedError
    `policy-loosens`, also for a network that the profile does not give.
    """
    overlay = wanted.overlay
    if wanted.network is not None:
        overlay = overlay.model_copy(update={"network": wanted.network})
    policy = tighten(profile, overlay).for_account(caller.uid, caller.gid)
    changes: dict[str, Any] = {
        "asked-read-only": (*policy.asked_read_only, *wanted.read_only),
        "asked-read-write": (*policy.asked_read_write, *wanted.read_write),
    }
    if wanted.directory is not None:
        changes["directory"] = wanted.directory
    try:
        return Policy.model_validate({**policy.model_dump(by_alias=True), **changes})
    except ValueError as error:  # such as a path that the profile shows already
        raise RefusedError(_first(error), reason="sandbox-paths") from error


def _first(error: ValueError) -> str:
    from pydantic import ValidationError

    details = error.errors() if isinstance(error, ValidationError) else []
    return str(details[0]["msg"]).removeprefix("Value error, ") if details else str(error)


def _summary(profile: Profile) -> dict[str, Any]:
    policy = profile.policy
    return {
        "name": profile.name,
        "description": policy.description,
        "network": policy.network,
        "user": policy.user,
        "seccomp": policy.seccomp,
        "origin": list(profile.origin),
        "broken": None if profile.broken is None else profile.broken.message,
    }
