"""A service in a sandbox: its shim starts the launcher, the launcher starts the service.

The profile says what a service may see and do; the unit adds what is this unit's own: account, folders, environment.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.files import write_whole
from daemon.core.part import Context
from daemon.parts.service.accounts import Account
from daemon.parts.service.spec import ANYBODY, Spec
from daemon.parts.service.unit import Service

if TYPE_CHECKING:
    from daemon.linux.sandbox.policy import Policy

POLICY = "sandbox.policy"
_MINE = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PID")  # the shim's, to be passed on


def profile(name: str, context: Context) -> Policy:
    """The sandbox profile of that name, for a service. Raises NotFoundError, ConfigError, RefusedError."""
    from daemon.core.profiles import load_profile

    found = load_profile(context, name)
    if found.network == "proxy":
        raise ConfigError(
            f'the sandbox profile {name} has network = "proxy"',
            reason="unit-sandbox",
            hint="a filtering proxy lives as long as a `mixctl sandbox run`; a service takes one with host or none",
        )
    return found


def sandboxed(
    spec: Spec, service: Service, who: Account, context: Context, launcher: Path, sockets: int, folders: Sequence[Path]
) -> Spec:
    """`spec` with its command in the sandbox of the unit; the compiled policy is written beside the spec.

    sockets: how many descriptors from 3 on the service inherits; folders: those of its own, which it may write,
    whatever its environment says. Raises like `profile`, and ConfigError `unit-sandbox`.
    """
    from daemon.linux.sandbox.compile import compile_policy
    from daemon.linux.sandbox.policy import problem

    assert service.sandbox is not None
    folder = context.run / "units" / spec.unit
    policy = profile(service.sandbox, context).for_account(who.uid, who.gid, who.groups)
    notify = (f"?{folder / 'notify'}",) if spec.notify else ()
    changes: dict[str, object] = {
        "directory": service.working_directory,
        "umask": f"{service.umask:04o}",
        "pass-environment": tuple(dict.fromkeys((*policy.pass_environment, *spec.environment, *_MINE))),
    }
    if policy.user == "dynamic":  # root's name and home are not its own; what the unit says is
        roots = {"HOME": who.home, "USER": who.name, "LOGNAME": who.name}
        said = {name: spec.environment[name] for name, value in roots.items() if spec.environment[name] != value}
        changes["environment"] = {**policy.environment, **said}
    if service.capabilities is not None:
        changes["capabilities"] = service.capabilities
    try:
        policy = policy.changed(changes)
    except ValueError as error:
        raise ConfigError(
            f"the sandbox profile {service.sandbox} and the unit: {problem(error)}", reason="unit-sandbox"
        ) from error
    ours = {  # wherever the daemon has them
        "read_only": (*policy.read_only, *notify),
        "read_write": tuple(dict.fromkeys((*policy.read_write, *map(os.fspath, folders)))),
    }
    data = compile_policy(policy.model_copy(update=ours), uid_locks=context.run / "uids")
    folder.mkdir(mode=0o755, exist_ok=True)
    write_whole(folder / POLICY, data, 0o600)
    # The launcher wants to know exactly: so there is no store, see `contradictions`.
    keep = sockets + (spec.ready_fd > 0)
    argv = (os.fspath(launcher), "--keep", str(keep), os.fspath(folder / POLICY), "--", *spec.argv)
    # The launcher needs what it takes away from the service: it runs as we do. The service itself notifies, under an
    # account that may be taken inside the sandbox only.
    notifier = policy.user if isinstance(policy.user, int) else ANYBODY
    return replace(
        spec, argv=argv, uid=os.geteuid(), gid=os.getegid(), groups=(), cwd="/", umask=0o077, notify_uid=notifier,
        no_new_privileges=False, fd_store=0, ambient=frozenset(), bounding=None,
    )  # fmt: skip
