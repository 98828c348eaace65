"""The sandbox as a part of the daemon: profiles to look at, commands to run confined, and the truth about both."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field, StringConstraints

from common.errors import RefusedError
from common.tomlfile import Strict
from common.values import Name
from daemon.core.method import EVERYONE, OPERATORS, Caller, Method, Nothing
from daemon.core.part import Context
from daemon.core.profiles import Profile, names, read_profile
from daemon.core.transfer import Accepts, Content
from daemon.linux.cgroup import Tree
from daemon.linux.sandbox.policy import Changed, Network, Overlay, Policy, Shown, Word, tighten
from daemon.parts.sandbox.run import Ended, Runner

if TYPE_CHECKING:
    from daemon.parts.sandbox.answers import Explained, Explanation, Item, ProfileFacts, WholeProfile

Value = Annotated[str, StringConstraints(max_length=1024, pattern=r"^[^\x00]*$")]


class Named(Strict):
    """A profile."""

    profile: Name = Field(default="tool", description="the profile's name, such as tool")


class Command(Strict):
    """A command to run."""

    command: tuple[str, ...] = Field(min_length=1, max_length=1000, description="the program and its arguments")
    profile: Name = Field(default="tool", description="the profile's name, such as tool")
    read_only: tuple[Shown, ...] = Field(default=(), max_length=64, description="paths of the caller's own to show")
    read_write: tuple[Changed, ...] = Field(
        default=(), max_length=64, description="paths of the caller's own that may be changed"
    )
    network: Network | None = Field(default=None, description="less network than the profile gives")
    directory: str | None = Field(default=None, description="the working folder inside")
    overlay: Overlay = Field(default=Overlay(), description="keys of a profile, which take away from this one")
    environment: dict[Word, Value] = Field(
        default={}, max_length=64, description="variables, of which those pass that the profile names"
    )
    input: Annotated[Content, Accepts(None, idle=None)] | None = Field(
        default=None, description="standard input, of any size and at any pace"
    )


class Sandbox:
    """The part. runner: default, that of a device."""

    name = "sandbox"

    def __init__(self, context: Context, runner: Runner | None = None) -> None:
        self.context = context
        self.runner = runner or Runner(context, Tree(context.cgroups / ".sandboxes"))

    def methods(self) -> Sequence[Method]:
        """What clients can call."""
        return (
            Method("sandbox.profiles", "List the sandbox profiles.", self.profiles, EVERYONE),
            Method("sandbox.show", "Show what a profile allows.", self.show, EVERYONE, Named),
            Method(
                "sandbox.explain", "Say what of a profile is enforced on this device.", self.explain, OPERATORS, Named
            ),
            Method("sandbox.run", "Run a command in a sandbox.", self.run, OPERATORS, Command, changes=True),
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

    async def profiles(self, _: Caller, __: Nothing) -> list[ProfileFacts]:
        """All profiles, by name."""
        return [_summary(read_profile(self.context, name)) for name in names(self.context)]

    async def show(self, _: Caller, wanted: Named) -> WholeProfile:
        """The whole policy, with where it comes from."""
        profile = read_profile(self.context, wanted.profile)
        return {**_summary(profile), "policy": profile.policy.model_dump(mode="json", by_alias=True)}

    async def explain(self, caller: Caller, wanted: Named) -> Explained:
        """See `daemon.parts.sandbox.explain.explain`."""
        from daemon.parts.sandbox.explain import explain

        profile = read_profile(self.context, wanted.profile)
        found = await explain(self.runner, profile.policy.for_account(caller.uid, caller.gid))
        return {**_summary(profile), **cast("Explanation", found)}

    async def run(self, caller: Caller, wanted: Command) -> AsyncIterator[Item]:
        """Items `{"stream": 1 or 2, "data": base64}`, at the end `{"code", "timeout", "facts"}`."""
        policy = command_policy(read_profile(self.context, wanted.profile).policy, caller, wanted)
        running = self.runner.run(policy, wanted.command, wanted.input, wanted.environment)
        async with aclosing(running) as items:
            async for item in items:
                if isinstance(item, Ended):
                    yield cast("Item", item._asdict())
                else:
                    yield {"stream": item.stream, "data": base64.b64encode(item.data).decode()}


def command_policy(profile: Policy, caller: Caller, wanted: Command) -> Policy:
    """The profile for one command: the caller's overlay takes away, the caller's own paths are added.

    The paths are looked up with the account that the command gets, never with root's rights. Raises RefusedError
    `policy-loosens`, also for a network that the profile does not give.
    """
    overlay = wanted.overlay
    if wanted.network is not None:
        overlay = overlay.model_copy(update={"network": wanted.network})
    policy = tighten(profile, overlay).for_account(caller.uid, caller.gid)
    own = {*wanted.read_only, *wanted.read_write}
    changes: dict[str, Any] = {
        "scratch": {path: size for path, size in policy.scratch.items() if path not in own},
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


def _summary(profile: Profile) -> ProfileFacts:
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
