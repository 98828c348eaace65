"""Profiles: policies by name, from TOML files. Shipped ones are part of the image, local ones are people's.

A file is a policy; `extends = "other"` starts from another profile: what it lists is added, tables are merged, other
keys replaced. A local file with the name of a shipped profile is an *overlay*: it may only take away
(`policy.tighten`).

A local file that is broken does not make a sandbox weaker, nor does it stop what worked: the last policy that was read
from it without a mistake stays in force, and everybody is told. Without such a policy nothing runs.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import Field, ValidationError

from common import toml, tomlfile
from common.errors import ConfigError, MixosError, NotFoundError
from common.files import write_atomically
from common.values import NAME, Name
from daemon.core.part import Context
from daemon.linux.sandbox.policy import Overlay, Policy, tighten

SHIPPED = (
    Path(__file__).resolve().parents[1] / "linux/sandbox/profiles"
)  # of a checkout; a device has them below Context.lib
MAX_DEPTH = 8


class ProfileFile(Policy):
    """A profile as people write it."""

    extends: Name | None = None
    # Not a file's business: who asks, and which proxy serves.
    asked_read_only: Annotated[tuple[str, ...], Field(max_length=0)] = ()
    asked_read_write: Annotated[tuple[str, ...], Field(max_length=0)] = ()
    proxy_socket: None = None


class Profile(NamedTuple):
    """A profile as it is in force. origin: its files, outermost first; broken: what is wrong with what they say now."""

    name: str
    policy: Policy
    origin: tuple[str, ...]
    broken: MixosError | None = None


def load_profile(context: Context, name: str) -> Policy:
    """The policy in force under this name. Raises NotFoundError `profile-missing`, ConfigError, RefusedError."""
    return read_profile(context, name).policy


def read_profile(context: Context, name: str) -> Profile:
    """Like `load_profile`, with where it comes from. A broken file is reported as event `sandbox.profile-broken`."""
    kept = context.state / "sandbox" / "profiles" / f"{name}.json"
    known = names(context)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(known)}"
        raise NotFoundError(f"there is no sandbox profile '{name}'", reason="profile-missing", hint=hint)
    try:
        policy, origin = _read(context, name, ())
    except MixosError as error:
        last = _last_good(kept)
        if last is None:
            raise
        context.events.publish("sandbox.profile-broken", name, error=error.message, reason=error.reason)
        return Profile(name, last, (str(kept),), error)
    if any(Path(path).is_relative_to(context.etc) for path in origin):
        _keep(kept, policy)
    else:
        kept.unlink(missing_ok=True)  # there is no local file any more: what it said is over
    return Profile(name, policy, origin)


def names(context: Context) -> list[str]:
    """All profiles, sorted."""
    folders = (_shipped_folder(context), context.etc / "profiles")
    return sorted({path.stem for folder in folders for path in folder.glob("*.toml") if _is_name(path.stem)})


def _is_name(text: str) -> bool:
    import re

    return re.fullmatch(NAME, text) is not None


def _shipped_folder(context: Context) -> Path:
    folder = context.lib / "profiles"
    return folder if folder.is_dir() else SHIPPED


def _local(context: Context, name: str) -> Path:
    return context.etc / "profiles" / f"{name}.toml"


def _read(context: Context, name: str, above: tuple[str, ...]) -> tuple[Policy, tuple[str, ...]]:
    """A profile with its local overlay, if there is one."""
    shipped, local = _shipped_folder(context) / f"{name}.toml", _local(context, name)
    if not shipped.exists():
        return _policy(context, local, (*above, name))
    policy, origin = _policy(context, shipped, (*above, name))
    if not local.exists():
        return policy, origin
    return tighten(policy, tomlfile.load(local, Overlay)), (str(local), *origin)


def _policy(context: Context, path: Path, chain: tuple[str, ...]) -> tuple[Policy, tuple[str, ...]]:
    text = tomlfile.read_text(path)
    written = tomlfile.parse(text, path, ProfileFile)
    data = toml.loads(text)
    data.pop("extends", None)
    origin: tuple[str, ...] = (str(path),)
    if written.extends is not None:
        if written.extends in chain or len(chain) > MAX_DEPTH:
            raise ConfigError(
                f"{path}: profiles extend each other: {' → '.join((*chain, written.extends))}", reason="profile-cycle"
            )
        if written.extends not in names(context):
            raise ConfigError(
                f"{path}: extends = '{written.extends}': there is no such profile", reason="profile-missing"
            )
        base, more = _read(context, written.extends, chain)
        origin += more
        data = _merge(base.model_dump(by_alias=True, exclude_defaults=True), data)
    try:
        return Policy.model_validate(data), origin
    except ValidationError as error:  # each file is sound, but not together
        problems = "; ".join(str(detail["msg"]).removeprefix("Value error, ") for detail in error.errors())
        raise ConfigError(f"{path}: {problems}", reason="config-value") from error


def _merge(base: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Lists grow, tables are merged, everything else is replaced."""
    merged = dict(base)
    for key, value in new.items():
        old = merged.get(key)
        if isinstance(value, list) and isinstance(old, list | tuple):
            merged[key] = list(dict.fromkeys((*old, *value)))
        elif isinstance(value, dict) and isinstance(old, dict):
            merged[key] = {**old, **value}
        else:
            merged[key] = value
    return merged


def _keep(path: Path, policy: Policy) -> None:
    data = json.dumps(policy.model_dump(mode="json", by_alias=True), sort_keys=True).encode() + b"\n"
    try:
        if not path.exists() or path.read_bytes() != data:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomically(path, data, 0o600)
    except OSError:
        pass  # a full or read-only disk: the policy that was just read is in force all the same


def _last_good(path: Path) -> Policy | None:
    try:
        return Policy.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, RecursionError):
        return None
