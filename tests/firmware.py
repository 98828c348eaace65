"""Firmware of a simulated device (`tests.slots`): databases of Secure Boot as files of efivarfs, with signatures that
openssl verifies; and the program `mixos-firmware` on it.

firmware = Firmware(device)            # PK, KEK and db of `tests.secureboot`; all on the device is signed by db
firmware.brings(0, addition("db", certificate("db-2")))
run(device, "look")
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from buildsys.run import run as execute
from common.disk import fatread, gpt
from common.disk.fatedit import Editor
from common.efi import additions, pe, pkcs7, siglist
from common.efi.additions import SIGNED_BY
from common.efi.entries import FOLDER
from common.efi.siglist import Signature
from daemon.firmware import main as program
from daemon.firmware import variables
from image import esp, secureboot
from image.secureboot import Signer
from tests.hostpackages import ROOT
from tests.images import pe_image
from tests.secureboot import OWNER, content_info, signer
from tests.slots import EFIVARS, Device

WHEN = datetime(2026, 12, 1, tzinfo=UTC)
LOADER = pe_image([(".text", b"the boot manager")])
_APPEND = 0x67


def certificate(name: str) -> Signature:
    """Of a key, as an entry."""
    return Signature(siglist.X509, OWNER, signer(name).der)


def hash_of(image: bytes) -> Signature:
    """Of an image, as an entry."""
    return Signature(siglist.SHA256, OWNER, pe.authenticode(image))


def addition(variable: str, *entries: Signature, by: str | None = None) -> tuple[str, bytes]:
    """An addition, of which only the number is missing."""
    return variable, secureboot.update(variable, entries, signer(by or SIGNED_BY[variable]), WHEN, append=True)


class Firmware:
    """See the module."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.folder = device.tree / EFIVARS
        for name, held in {"PK": "PK", "KEK": "KEK", "db": "db"}.items():
            self.set(name, certificate(held))
        self.enforce(on=True)
        sign_all(device, signer("db"))

    def path(self, name: str) -> Path:
        """Of a database."""
        return self.folder / f"{name}-{siglist.VARIABLES[name]}"

    def set(self, name: str, *entries: Signature) -> None:
        """What a database holds."""
        self.path(name).write_bytes(struct.pack("<I", 0x27) + siglist.write(entries))

    def get(self, name: str) -> tuple[Signature, ...]:
        """The same."""
        return siglist.read_variable(self.path(name).read_bytes()) if self.path(name).exists() else ()

    def enforce(self, *, on: bool) -> None:
        """Whether Secure Boot is on."""
        (self.folder / f"SecureBoot-{siglist.VARIABLES['PK']}").write_bytes(b"\6\0\0\0" + bytes([on]))

    def room(self, size: int) -> None:
        """Bytes that a variable may have."""
        (self.device.tree / "room").write_text(str(size))

    def brings(self, number: int, found: tuple[str, bytes]) -> str:
        """Have the image bring an addition; its name."""
        folder = self.device.tree / additions.FOLDER.relative_to("/")
        folder.mkdir(parents=True, exist_ok=True)
        name = additions.file_name(number, found[0])
        (folder / name).write_bytes(found[1])
        return name.removesuffix(".auth")


def set_variable(path: Path, data: bytes) -> None:
    """As firmware does (UEFI 2.10, 8.2.2 and 32.4.1). Raises OSError as the kernel does."""
    name = path.name.partition("-")[0]
    (attributes,) = struct.unpack_from("<I", data)
    update = siglist.read_update(data[4:])
    databases = {one: path.with_name(f"{one}-{siglist.VARIABLES[one]}") for one in siglist.VARIABLES}
    present = {one: siglist.read_variable(p.read_bytes()) if p.exists() else () for one, p in databases.items()}
    if attributes != _APPEND or not _signed(name, update, present[SIGNED_BY[name]]):
        raise PermissionError(errno.EACCES, "SetVariable")
    content = struct.pack("<I", 0x27) + siglist.write(siglist.merged(present[name], update.signatures))
    room = path.parents[4] / "room"
    if room.exists() and len(content) > int(room.read_text()):
        raise OSError(errno.ENOSPC, "SetVariable")
    path.write_bytes(content)


def _signed(name: str, update: siglist.Update, by: tuple[Signature, ...]) -> bool:
    if not {one.data for one in pkcs7.certificates(update.signature)} & {one.data for one in by}:
        return False
    with tempfile.TemporaryDirectory() as folder:
        signature, content = Path(folder, "signature"), Path(folder, "content")
        signature.write_bytes(content_info(update.signature))
        content.write_bytes(siglist.to_be_signed(name, update.signatures, update.time, append=True))
        words = ["-inform", "DER", "-in", str(signature), "-content", str(content), "-binary", "-noverify"]
        return execute(["openssl", "smime", "-verify", *words, "-out", "/dev/null"], allow=range(256)).status == 0


def sign_all(device: Device, by: Signer) -> None:
    """Have all that starts on a device be signed, as a signed image has it; the loader of tests is no program, and gets
    to be one."""
    descriptor = os.open(device.path, os.O_RDWR)
    try:
        table = gpt.read(descriptor)
        for part in (one for one in table.partitions if one.name in (esp.NAME, esp.SECOND)):
            contents = esp.read(descriptor, part)
            for path in contents:
                if path.lower().endswith(".efi") and not path.startswith(f"{FOLDER}/"):
                    contents[path] = LOADER
            volume = fatread.open_volume(descriptor, part.offset, part.size)
            signed = secureboot.signed_files(contents, by)
            esp.write(descriptor, part, signed, volume.volume_id, 1703030400)
    finally:
        os.close(descriptor)


def sign_entry(device: Device, root_hash: bytes, by: Signer) -> bytes:
    """Have the entry of a version be signed; the image."""
    descriptor = os.open(device.path, os.O_RDWR)
    try:
        editor: Editor = device.editor(descriptor)
        wanted = root_hash.hex().encode()
        (path,) = [one for one in editor.files() if one.startswith(f"{FOLDER}/") and wanted in editor.read(one)]
        signed = secureboot.sign(pe.unsigned(editor.read(path)), by)
        editor.replace(path, [signed], len(signed), epoch=0)
    finally:
        os.close(descriptor)
    return signed


def main(words: list[str], tree: Path) -> int:
    """`mixos-firmware` on a tree, whose efivarfs is a folder."""
    variables.set_variable = set_variable
    return program.main(words, tree, lambda root, write: None)


def argv(device: Device) -> tuple[str, ...]:
    """The same as a program."""
    code = f"import sys, pathlib; sys.path.insert(0, {str(ROOT)!r}); from tests.firmware import main; "
    return sys.executable, "-c", f"{code}sys.exit(main(sys.argv[1:], pathlib.Path({str(device.tree)!r})))"


def said(text: str) -> dict[str, Any]:
    """The last line."""
    found: dict[str, Any] = json.loads(text.splitlines()[-1])
    return found
