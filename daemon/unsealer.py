"""Who opens what is sealed to this device (`common.bundle.sealing`): a process that alone has the private key.

It reads nothing that strangers have written but names and sealed keys of fixed sizes. Who reads bundles gets the key of
one payload.
"""

from __future__ import annotations

import base64
import binascii
import os
import pwd
import socket
import traceback
from contextlib import suppress
from pathlib import Path

from common.bundle import sealing
from common.errors import DiskError, TrustError
from common.files import read_regular
from daemon.linux.become import become, keep_only, stay_alone

KEY = Path("update/key")  # below the state folder
_RECORD = sealing.ID + sealing.SEALED
_OPENED, _NONE, _DAMAGED, _OTHERS = b"\0", b"\1", b"\2", b"\3"  # answers; the last one: none is for this device
_WHY = {
    _NONE: "and this device has no key",
    _DAMAGED: "and this device's key is damaged",
    _OTHERS: "and not for this device",
}
_ADVICE = "give the key that 'mixctl update key' prints to who makes the releases"


def read(path: Path) -> bytes | None:
    """The private part; None without one. Raises DiskError `device-key`, also when it cannot be read."""
    why = "is damaged"
    try:
        private = base64.b64decode(read_regular(path, 64).strip(), validate=True)
    except FileNotFoundError:
        return None
    except binascii.Error:
        private = b""
    except OSError as error:
        private, why = b"", f"cannot be read: {error.strerror}"
    if len(private) != sealing.KEY:
        hint = "remove it, have 'mixctl update key' make another, and give that to who makes the releases"
        raise DiskError(f"{path} {why}", reason="device-key", hint=hint)
    return private


class Unsealer:
    """A process that opens what is sealed to the device, for as long as this one lives. It is begun before this one
    gives up its rights, and gives up its own once it has the key. account: whose, if we are root."""

    def __init__(self, path: Path, account: str) -> None:
        self._ours, theirs = socket.socketpair()
        parent = os.getpid()
        if not os.fork():
            status = 70  # sysexits.h, EX_SOFTWARE
            try:
                _serve(path, account, theirs, parent)
                status = 0
            except BaseException:  # noqa: BLE001
                traceback.print_exc()
            finally:
                os._exit(status)
        theirs.close()

    @property
    def descriptor(self) -> int:
        """By which it is asked."""
        return self._ours.fileno()

    def unseal(self, recipients: dict[bytes, bytes]) -> bytes:
        """The payload's key. recipients: sealed keys, by the names of devices. Raises TrustError `release-sealed`."""
        if not recipients:
            raise _sealed(_OTHERS)
        answer = b""
        with suppress(OSError), self._ours.makefile("rb") as stream:
            self._ours.sendall(b"".join(name + sealed for name, sealed in recipients.items()))
            self._ours.shutdown(socket.SHUT_WR)
            answer = stream.read(1 + sealing.KEY)
        if answer[:1] == _OPENED and len(answer) == 1 + sealing.KEY:
            return answer[1:]
        raise _sealed(answer)


def _sealed(answer: bytes) -> TrustError:
    why = _WHY.get(answer, "and what opens it has failed")
    return TrustError(f"the release is encrypted, {why}", reason="release-sealed", hint=_ADVICE)


def _serve(path: Path, account: str, asked: socket.socket, parent: int) -> None:
    private: bytes | None = None
    answer = _NONE
    try:
        private = read(path)
    except DiskError:
        answer = _DAMAGED
    keep_only((asked.fileno(),))
    for number in range(3):
        os.dup2(asked.fileno(), number)
    stay_alone()
    entry = pwd.getpwnam(account) if os.geteuid() == 0 else None
    become((entry.pw_uid, entry.pw_gid) if entry else None, None, parent)
    with asked.makefile("rb") as stream:
        given = stream.read(_RECORD * sealing.MAX_DEVICES)
    if given:  # otherwise the bundle is not encrypted, and the library is not needed
        asked.sendall(answer if private is None else _answer(private, given))


def _answer(private: bytes, given: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    ours = sealing.name(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())
    for at in range(0, len(given) - _RECORD + 1, _RECORD):
        if given[at : at + sealing.ID] == ours:
            key = sealing.unseal(given[at + sealing.ID : at + _RECORD], private)
            return _OTHERS if key is None else _OPENED + key
    return _OTHERS
