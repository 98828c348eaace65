"""Users and groups of services by name or number."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass

from common.errors import ConfigError
from daemon.parts.service.unit import Service


@dataclass(frozen=True)
class Account:
    """Who a service runs as; `groups` are supplementary."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    name: str
    home: str


def user_id(name: str) -> int:
    """The number of a user. Raises ConfigError `unit-user`."""
    return _user(name).pw_uid


def group_id(name: str) -> int:
    """The number of a group. Raises ConfigError `unit-group`."""
    try:
        return grp.getgrgid(int(name)).gr_gid if name.isdigit() else grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise ConfigError(f"there is no group '{name}'", reason="unit-group") from error


def account(service: Service) -> Account:
    """The account of a service: its user, that user's groups, or what the unit says instead; default: our own.

    Raises ConfigError `unit-user`, `unit-group`, or `unit-user-change` when we are not root and it is another one.
    """
    entry = _user(service.user if service.user is not None else str(os.geteuid()))
    gid = entry.pw_gid if service.group is None else group_id(service.group)
    member = [one.gr_gid for one in grp.getgrall() if entry.pw_name in one.gr_mem and entry.pw_uid != 0]
    groups = sorted({*member, *map(group_id, service.groups)} - {gid})
    if os.geteuid() != 0 and (entry.pw_uid, gid) != (os.geteuid(), os.getegid()):
        raise ConfigError(f"only root can start it as '{service.user}'", reason="unit-user-change")
    return Account(entry.pw_uid, gid, tuple(groups), entry.pw_name, entry.pw_dir)


def _user(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError as error:
        raise ConfigError(f"there is no user '{name}'", reason="unit-user") from error
