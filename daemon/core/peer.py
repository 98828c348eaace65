"""Who calls: the account that the kernel recorded gives the role; where from is what the caller's environment claims.

sshd sets SSH_CONNECTION and, with `ExposeAuthInfo yes`, SSH_USER_AUTH, the path of a file with the key that was used
(sshd_config(5)). Both lie in the environment of the calling process, which is the caller's to change. They say who of
several people behind one account it probably was; rights never depend on them, and the audit marks them as claimed.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from common.accounts import ACCOUNTS as TABLE
from daemon.core.method import Caller, Role

ACCOUNTS: Mapping[int, Role] = MappingProxyType({account.uid: Role(account.role) for account in TABLE})
_MAX = 128 << 10  # bytes of an environment that are looked at
_ADDRESS = re.compile(r"[0-9A-Fa-f.:]{2,45}(%[0-9A-Za-z._-]{1,15})?")


class Credentials(NamedTuple):
    """A process, as the kernel knows it."""

    pid: int
    uid: int
    gid: int


def credentials(peer: socket.socket) -> Credentials:
    """Who is at the other end, as the kernel recorded it at connect (unix(7), SO_PEERCRED)."""
    pid, uid, gid = struct.unpack("=iII", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Credentials(pid, uid, gid)


def identify(who: Credentials, accounts: Mapping[int, Role], proc: Path = Path("/proc")) -> Caller | None:
    """The caller with role, or None for an account that has none."""
    role = accounts.get(who.uid)
    if role is None:
        return None
    environment = _environment(proc / str(who.pid) / "environ")
    name = _account(who.uid)
    if key := _key(environment.get("SSH_USER_AUTH", ""), who.uid):
        name = f"{name} (claimed key {key})"
    connection = environment.get("SSH_CONNECTION", "")[:200]
    address = connection.partition(" ")[0]
    if not _ADDRESS.fullmatch(address):
        return Caller(role, who.uid, who.gid, who.pid, name, "local (claimed)")
    return Caller(role, who.uid, who.gid, who.pid, name, f"ssh {address} (claimed)", connection)


def _account(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _environment(path: Path) -> dict[str, str]:
    """Variables of a process that may be gone or may not be looked at: then none.

    Reading another process's memory can be held up by its owner only through FUSE or userfaultfd, which the device does
    not give to accounts; so this needs no thread.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(_MAX)
    except OSError:
        return {}
    pairs = (item.decode("utf-8", "replace").partition("=") for item in data.split(b"\0"))
    return {name: value for name, _, value in pairs}


def _key(path: str, uid: int) -> str | None:
    """The fingerprint of the key in a file of sshd's. The path is the caller's word: only its own file is read."""
    if not path.startswith("/"):
        return None
    with contextlib.suppress(OSError):
        # Opened only when it is known to be a file: opening a device does something, a terminal would even become ours.
        place = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            facts = os.fstat(place)
            if not stat.S_ISREG(facts.st_mode) or facts.st_uid != uid:
                return None
            with Path(f"/proc/self/fd/{place}").open("rb") as stream:
                return fingerprint(stream.read(16 << 10))
        finally:
            os.close(place)
    return None


def fingerprint(text: bytes) -> str | None:
    """The SHA256 fingerprint of the first public key in lines "publickey TYPE BASE64"."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and words[0] == b"publickey":
            with contextlib.suppress(ValueError):
                digest = hashlib.sha256(base64.b64decode(words[2], validate=True)).digest()
                return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")
    return None
