"""Who may log in, and how: the files of sshd that a restore brings.

sshd reads the keys of an account at each login, and its configuration when it is told to. So they are in force as soon
as they are written: on trial that is what is done, and undone by writing what was there, also after a reboot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import MixosError
from common.files import sync_folder, write_atomically
from daemon.core.change.applier import Plan, View
from daemon.core.change.connection import connection
from daemon.core.change.files import Step, Trees
from daemon.core.change.record import Contents
from daemon.core.method import Caller

KEYS, CONFIG = "etc/ssh/authorized_keys/", "etc/ssh/sshd_config.d/"
_SSHD = "/usr/sbin/sshd"
_NEW = (0o644, 0, 0)  # permissions, user and group of a file that was not there


class Login:
    """An Applier."""

    name = "backup"
    lasts = True

    def __init__(self, places: Trees) -> None:
        self.places = places

    def owns(self, name: str) -> bool:
        """See Applier."""
        return name.startswith((KEYS, CONFIG))

    def in_force(self) -> Contents:
        """Always what is on the disk."""
        return {}

    async def prepare(self, view: View, caller: Caller | None, dry_run: bool) -> Plan:
        """See Applier. It cuts off who came over the network when a key of their account goes, or sshd is configured
        in another way."""
        disk = View(self.places)
        contents = {name: view.read(name) for name in sorted(filter(self.owns, view.changed))}
        old = {name: disk.read(name) for name in contents}
        differ = [name for name in contents if contents[name] != old[name]]
        mine = KEYS + _account(caller.uid) if caller is not None else ""
        cuts = any(name.startswith(CONFIG) or (name == mine and _loses(old[name], contents[name])) for name in differ)
        return Plan(
            contents,
            [f"{'remove' if contents[name] is None else 'write'} /{name}" for name in differ],
            changes=bool(differ),
            cuts=cuts and caller is not None and connection(caller.connection) is not None,
            before={name: _rights(self.places.place(name)) for name in contents},
            data={name: _rights(staged) for name, staged in view.changed.items() if isinstance(staged, Path)},
        )

    async def apply(self, plan: Plan, step: Step) -> None:
        """See Applier. Raises MixosError `backup-login`."""
        for name, data in plan.contents.items():
            await asyncio.to_thread(self._put, name, data, plan.data.get(name, plan.before[name]))
            step(f"login {name}")
        self._reload(plan.contents)

    async def undo(self, before: Mapping[str, Any], view: View) -> None:
        """See Applier."""
        names = sorted(filter(self.owns, view.changed))
        for name in names:
            await asyncio.to_thread(self._put, name, view.read(name), before.get(name, _NEW))
        self._reload(names)

    async def kept(self) -> None:
        """The commit has written the files."""

    def _put(self, name: str, data: bytes | None, rights: Sequence[int]) -> None:
        path = self.places.place(name)
        try:
            if data is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                mode, uid, gid = rights
                write_atomically(path, data, mode)
                if os.geteuid() == 0:  # elsewhere everything is the user's own
                    os.chown(path, uid, gid)
            elif path.exists():
                path.unlink()
                sync_folder(path.parent)
        except OSError as error:
            raise MixosError(f"{path}: {error.strerror}", reason="backup-login") from error

    def _reload(self, names: Iterable[str]) -> None:
        """Tell the device's sshd; one that is not there reads its configuration when it starts."""
        if self.places.etc == Path("/etc") and any(name.startswith(CONFIG) for name in names):
            for entry in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError, ValueError):
                    _hang_up(int(entry.name))


def _hang_up(pid: int) -> None:
    """If this is the sshd that init has started. Raises OSError, ValueError."""
    descriptor = os.pidfd_open(pid)
    try:
        parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        if parent == 1 and os.readlink(f"/proc/{pid}/exe") == _SSHD:
            signal.pidfd_send_signal(descriptor, signal.SIGHUP)
    finally:
        os.close(descriptor)


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


def _loses(old: bytes | None, new: bytes | None) -> bool:
    """Whether a key is gone, or has other options: a line that was there is not there any more."""
    lines = [{line.strip() for line in (data or b"").split(b"\n") if not line.startswith(b"#")} for data in (old, new)]
    return bool(lines[0] - lines[1] - {b""})


def _rights(path: Path) -> tuple[int, int, int]:
    """Permissions, user and group of a file; of a new one when it is not there."""
    try:
        facts = path.stat()
    except OSError:
        return _NEW
    return facts.st_mode & 0o777, facts.st_uid, facts.st_gid
