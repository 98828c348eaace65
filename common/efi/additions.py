"""Additions to Secure Boot's databases that an image brings, for devices that are out already: signed updates of db and
dbx (by a KEK) and of KEK (by the PK), in the order of their numbers.

FOLDER/0001-db.auth     an `.auth` file (`common.efi.siglist`), signed to be appended (EFI_VARIABLE_APPEND_WRITE)

An addition takes nothing away and may come twice; what is to be started no more is added to dbx. Standard library only.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from common.efi import pkcs7, siglist
from common.efi.siglist import Signature, SignatureListError, Update
from common.files import read_regular

FOLDER = Path("/usr/lib/mixos/secureboot")  # on the verified root
SIGNED_BY = {"db": "KEK", "dbx": "KEK", "KEK": "PK"}
MAX_BYTES = 64 << 10  # of one: firmware has about as much room for all its variables
MAX_COUNT = 200
_NAME = re.compile(r"([0-9]{4})-(db|dbx|KEK)\.auth")


@dataclass(frozen=True)
class Addition:
    """variable: of SIGNED_BY; data: the `.auth` file."""

    number: int
    variable: str
    data: bytes

    @property
    def name(self) -> str:
        """By which it is told."""
        return f"{self.number:04}-{self.variable}"

    @property
    def digest(self) -> str:
        """SHA-256, in hex: another addition of the same name is another one."""
        return hashlib.sha256(self.data).hexdigest()

    @cached_property
    def update(self) -> Update:
        """What it holds. Raises SignatureListError."""
        return siglist.read_update(self.data)

    def missing(self, databases: Mapping[str, Iterable[Signature]]) -> tuple[Signature, ...]:
        """What of it the databases (by name) do not hold, whoever put it there."""
        there = {(one.kind, one.data) for one in databases.get(self.variable, ())}
        return tuple(one for one in self.update.signatures if (one.kind, one.data) not in there)


def file_name(number: int, variable: str) -> str:
    """Of an addition. Raises ValueError for a number that has no name."""
    if not 1 <= number <= 9999:
        raise ValueError(f"there is no addition {number}")
    return f"{number:04}-{variable}.auth"


def read(folder: Path) -> tuple[Addition, ...]:
    """Those in a folder, in order; none where there is no folder. Raises SignatureListError, DerError, OSError."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return ()
    if len(names) > MAX_COUNT:
        raise SignatureListError(f"{folder} holds more than {MAX_COUNT} files")
    found = [_read(folder / name) for name in names]
    numbers = [one.number for one in found]
    if len(set(numbers)) != len(numbers):
        raise SignatureListError(f"{folder} holds two files of one number")
    return tuple(found)


def _read(path: Path) -> Addition:
    name = _NAME.fullmatch(path.name)
    if name is None:
        raise SignatureListError(f"{path.name} is no addition to a database: they are called as 0001-db.auth")
    data = read_regular(path, MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise SignatureListError(f"{path.name} has more than {MAX_BYTES} bytes")
    found = Addition(int(name[1]), name[2], data)
    if not found.update.signatures:
        raise SignatureListError(f"{path.name} adds nothing")
    for one in found.update.signatures:
        if one.kind == siglist.X509:
            pkcs7.certificate(one.data)
    return found
