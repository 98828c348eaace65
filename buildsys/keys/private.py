"""The folder with private keys: for its owner alone, each key a PEM file (PKCS #8, RFC 5958), usually encrypted.

tuf/NAME.pem        keys of TUF's roles; or tuf/NAME.uri: where else it is, such as `hsm:2?label=root-1` (PKCS #11)
openpgp/            the GNUPGHOME of the release key
secureboot/NAME.key PK, KEK, db
bundle/payload.key  a secret of which the keys of encrypted payloads are made (`buildsys.keys.payload`)
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from getpass import getpass
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from buildsys.files import atomic_write, named_folder, remove_tree, sync_folder
from buildsys.oserrors import host_error
from common.errors import HostError, KeysError

_MAX_SECRET = 1024  # bytes of a passphrase
_MAX_FILE = 64 << 10


def default_folder(image: str) -> Path:
    """MIXOS_KEYS (a stick, say), or mixos/keys/IMAGE below the user's configuration folder (XDG base directories)."""
    named = named_folder("MIXOS_KEYS")
    if named is not None:
        return named
    try:
        config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config").absolute()
    except RuntimeError as error:
        hint = "set MIXOS_KEYS or HOME"
        raise HostError("this user has no home folder for keys", reason="folder-unknown", hint=hint) from error
    return config / "mixos" / "keys" / image


class Passphrase:
    """The passphrase of the keys: from a descriptor, or asked for at the terminal, once. none: new keys have none."""

    def __init__(self, descriptor: int | None = None, *, none: bool = False) -> None:
        self._descriptor = descriptor
        self._none = none
        self._known: str | None = None

    @property
    def given(self) -> bool:
        """Whether it comes from a descriptor: then nobody is asked, GnuPG's agent neither."""
        return self._descriptor is not None

    def for_new(self) -> str | None:
        """The passphrase that new keys get; None: they are not encrypted. Raises KeysError `keys-passphrase`."""
        if self._none:
            return None
        if self._known is None and not self.given:
            first = self._asked("Passphrase for the new keys: ")
            if self._asked("Again: ") != first:
                raise KeysError("the two passphrases differ", reason="keys-passphrase")
            self._known = first
        found = self.get("")
        if len(found) < 8 or found != found.strip() or not found.isprintable():
            message = "a passphrase has 8 printable characters at least, and no blank at either end"
            raise KeysError(message, reason="keys-passphrase")
        return found

    def get(self, what: str) -> str:
        """The passphrase of a key that has one."""
        if self._known is None:
            self._known = self._read() if self.given else self._asked(f"Passphrase of {what}: ")
        return self._known

    def _read(self) -> str:
        assert self._descriptor is not None
        try:
            with os.fdopen(os.dup(self._descriptor), "rb") as stream:
                line = stream.readline(_MAX_SECRET + 1)
            found = line.rstrip(b"\r\n").decode()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text"
            message = f"no passphrase from descriptor {self._descriptor}: {why}"
            raise KeysError(message, reason="keys-passphrase") from error
        if not found or len(line) > _MAX_SECRET:
            raise KeysError("the passphrase that was given is empty or too long", reason="keys-passphrase")
        return found

    def _asked(self, prompt: str) -> str:
        try:
            os.close(
                os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            )  # else getpass would take stdin for one
            return getpass(prompt)
        except (EOFError, OSError) as error:
            message, hint = "there is no terminal to ask for a passphrase", "give it by --passphrase-fd"
            raise KeysError(message, reason="keys-passphrase", hint=hint) from error


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """What the system refuses in the body, as a HostError that says where and what to do."""
    try:
        yield
    except OSError as error:
        hint = "MIXOS_KEYS, or --to, names the folder of private keys"
        raise host_error(error, f"{path} cannot be written", hint=hint) from error


def _put(path: Path, data: bytes) -> None:
    """Make a file that was not there, whole, whoever else is about to. Raises KeysError `keys-there`, OSError."""
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    atomic_write(made, data, 0o600)
    try:
        os.link(made, path)
        made.unlink()
    except OSError as error:
        if path.exists():
            made.unlink()
            hint = "a private key is never overwritten"
            raise KeysError(f"{path} is there already", reason="keys-there", hint=hint) from error
        made.replace(path)  # a file system without links, as on sticks
    sync_folder(path.parent)


def _opens(data: bytes, secret: str) -> bool:
    with suppress(ValueError, UnsupportedAlgorithm):
        load_pem_private_key(data, secret.encode())
        return True
    return False


class Private:
    """One such folder. Every access first makes sure that nobody else can read in it (KeysError `keys-exposed`)."""

    def __init__(self, folder: Path, passphrase: Passphrase) -> None:
        self.folder = folder
        self.passphrase = passphrase

    def names(self, kind: str) -> set[str]:
        """The names of the keys of a kind ("tuf", "secureboot") that are here."""
        return {path.stem for path in self.files(kind)}

    def files(self, kind: str) -> list[Path]:
        """Their files."""
        if not self.folder.exists():
            return []
        self._closed()
        return [path for path in (self.folder / kind).glob("*") if path.suffix in (".pem", ".uri", ".key")]

    def folder_of(self, kind: str) -> Path:
        """A folder below, made when it is missing. Raises HostError `host-io`."""
        folder = self.folder / kind
        with _written(folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        self._closed()
        return folder

    @cached_property
    def secret(self) -> str | None:
        """The passphrase of new keys; None: they have none. It opens one of the keys that are here, if these have one:
        else a slip of the fingers would lock a new key for good. Raises KeysError `keys-passphrase`."""
        found, locked = self.passphrase.for_new(), self._locked()
        if found is not None and locked and not any(_opens(one, found) for one in locked):
            hint = "a new key gets the passphrase of those that are there"
            raise KeysError(f"the passphrase opens no key in {self.folder}", reason="keys-passphrase", hint=hint)
        return found

    def _locked(self) -> list[bytes]:
        """The files of keys that have a passphrase."""
        files = [(kind, path.name) for kind in ("tuf", "secureboot") for path in self.files(kind)]
        return [data for data in (self.read(*one) for one in files) if b"ENCRYPTED" in data]

    def write(self, kind: str, name: str, key: Any, *, as_others: bool = False) -> None:
        """Keep a private key of `cryptography`. as_others: with a passphrase if those that are here have one,
        whatever new ones get. Raises KeysError `keys-there` rather than replacing one."""
        secret = self.secret if not as_others or self._locked() else None
        path = self.folder_of(kind) / name
        how: KeySerializationEncryption = BestAvailableEncryption(secret.encode()) if secret else NoEncryption()
        with _written(path):
            _put(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, how))

    def load(self, kind: str, name: str) -> Any:
        """A private key. Raises KeysError: `keys-missing`, `keys-passphrase` (wrong), `keys-damaged`."""
        data = self.read(kind, name)
        try:
            with suppress(TypeError):  # it is encrypted
                return load_pem_private_key(data, None)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise KeysError(f"{self.folder / kind / name} is no private key", reason="keys-damaged") from error
        try:
            return load_pem_private_key(data, self.passphrase.get(name).encode())
        except (ValueError, UnsupportedAlgorithm) as error:
            message = f"{self.folder / kind / name}: the passphrase does not open it"
            raise KeysError(message, reason="keys-passphrase") from error

    def read(self, kind: str, name: str) -> bytes:
        """The file of a private key, as it is."""
        self._closed()
        try:
            with (self.folder / kind / name).open("rb") as stream:
                return stream.read(_MAX_FILE)
        except FileNotFoundError as error:
            raise KeysError(f"the private key {name} is not in {self.folder}", reason="keys-missing") from error

    def move(self, kind: str, name: str, target: Path, *, keep: bool) -> None:
        """Copy a private key to another such folder, unless it is there, and remove it here unless `keep`. Raises
        KeysError `keys-there` when another one is there."""
        data = self.read(kind, name)
        there = Private(target, self.passphrase).folder_of(kind) / name
        with _written(there):
            if not there.exists() or there.samefile(self.folder / kind / name) or there.read_bytes() != data:
                _put(there, data)
        if not keep:
            remove_tree(self.folder / kind / name)

    def _closed(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            hint = "MIXOS_KEYS and --to name folders"
            raise HostError(f"{self.folder} is no folder for keys", reason="folder-unknown", hint=hint)
        for path in self._all():
            try:
                found = path.lstat()
            except FileNotFoundError:  # what another process was writing has its name now
                continue
            if found.st_uid != os.geteuid():
                hint = "keys are used by whom they belong to: name a folder of your own by MIXOS_KEYS"
                raise KeysError(f"{path} belongs to another user", reason="keys-exposed", hint=hint)
            if not stat.S_ISLNK(found.st_mode) and found.st_mode & 0o077:
                hint = f"chmod -R go= {self.folder}; if others may have read it, make new keys"
                raise KeysError(f"others may read {path}", reason="keys-exposed", hint=hint)

    def _all(self) -> Iterator[Path]:
        if self.folder.exists():
            yield self.folder
            for kind in self.folder.iterdir():
                yield kind
                if kind.name != "openpgp":  # in its closed folder GnuPG decides about modes
                    yield from kind.iterdir()
