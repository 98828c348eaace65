"""Unified kernel images: the systemd stub with kernel, command line and identity as PE sections (UAPI group, UKI spec).

The order is .osrel .cmdline .uname [.initrd] .linux, the kernel last: stubs up to v252 may start it in place, and
nothing that it overwrites while unpacking may follow it. `.cmdline` carries the verity root hash, so signing the file
signs the system; `.initrd` is the whole system of an entry that has no root on a disk.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from typing import NamedTuple

from common.efi import pe
from common.errors import FormatError

MAX_CMDLINE = 2047  # COMMAND_LINE_SIZE of x86 is 2048 with the final NUL
SECTIONS = (".osrel", ".cmdline", ".uname", ".linux")
MAX_VALUE = 255  # characters: whoever can write the ESP must not have us compare versions for minutes
HEAD = 256 << 10  # bytes: the stub and all sections before the kernel
_VERITY = re.compile(
    r'dm-mod\.create="[^"]* verity 1 (?:\S+ ){2}4096 4096 ([0-9]{1,10}) 0 sha256 ([0-9a-f]{64}) '
    r"(-|(?:[0-9a-f]{2}){1,256}) "
)


# The stub of systemd 257 adds an OEM string of the SMBIOS tables to the command line, also with Secure Boot on: whoever
# can write that string once starts another root, signed line or not. So it must not find the tables: the first halves
# of their GUIDs (SMBIOS 3 and 2), which the compiler keeps in one piece, are replaced.
_SMBIOS_EXTRA = b"io.systemd.stub.kernel-cmdline-extra"
_SMBIOS_TABLES = (bytes.fromhex("4415fdf294972c4a"), bytes.fromhex("312d9deb882dd311"))

# Stubs since systemd 258 add what they bring to an initramfs that whoever started them has left (the function's name is
# in them, for its messages); the one of 257 starts nothing then.
_FOREIGN_INITRD = b"acquire_previous_initrd"


class UkiError(FormatError):
    """The parts do not make a bootable image."""


@dataclass(frozen=True)
class Uki:
    """What a unified kernel image says about itself. sections: every PE section in file order."""

    os_release: str
    cmdline: str
    uname: str
    sections: tuple[pe.Section, ...]

    @property
    def root_hash(self) -> bytes | None:
        """The digest of the root that it starts with."""
        return root_hash(self.cmdline)

    def identity(self, name: str) -> str:
        """A value of os-release(5) in `.osrel`, at most MAX_VALUE characters of it; "" when it has none."""
        for line in self.os_release.splitlines():
            key, _, value = line.partition("=")
            if key == name:
                return value.strip("\"'")[:MAX_VALUE]
        return ""


class VerityTarget(NamedTuple):
    """What a command line says of the root: blocks of 4096 bytes, the digest, the salt."""

    blocks: int
    root: bytes
    salt: bytes


def verity_target(cmdline: str) -> VerityTarget | None:
    """The root in a kernel command line, as `verity.dm_create` writes it."""
    found = _VERITY.search(cmdline)
    if found is None:
        return None
    return VerityTarget(int(found[1]), bytes.fromhex(found[2]), bytes.fromhex(found[3].replace("-", "")))


def root_hash(cmdline: str) -> bytes | None:
    """The root digest in a kernel command line."""
    found = verity_target(cmdline)
    return found.root if found else None


def without_smbios(stub: bytes) -> bytes:
    """The stub, unable to take a command line from SMBIOS. Raises UkiError when it would and this cannot be changed."""
    if _SMBIOS_EXTRA not in stub:
        return stub
    for half in _SMBIOS_TABLES:
        if stub.count(half) != 1:
            raise UkiError("this stub takes words for the kernel from SMBIOS in a way that is not known", "uki-smbios")
        stub = stub.replace(half, b"no table")
    return stub


def build(stub: bytes, kernel: bytes, cmdline: str, os_release: str, uname: str, initrd: bytes = b"") -> bytes:
    """A UKI as bytes, the same for the same parts. Raises UkiError or pe.PeError."""
    if _FOREIGN_INITRD in stub:
        raise UkiError("this stub takes an initramfs that nobody has signed from whoever starts it", "uki-stub")
    if not cmdline.isascii() or not cmdline.isprintable() or len(cmdline) > MAX_CMDLINE:
        raise UkiError(
            f"the kernel command line has {len(cmdline)} characters (at most {MAX_CMDLINE} printable ASCII ones)",
            "uki-cmdline",
        )
    if not uname.isascii() or not uname or any(char.isspace() for char in uname):
        raise UkiError(f"{uname!r} is no kernel release", "uki-uname")
    if kernel_release(kernel) != uname:
        raise UkiError(f"the kernel says it is {kernel_release(kernel)!r}, not {uname!r}", "uki-uname")
    parts = list(zip(SECTIONS, (os_release.encode(), cmdline.encode(), uname.encode(), kernel), strict=True))
    if initrd:
        parts.insert(3, (".initrd", initrd))
    return pe.append(without_smbios(stub), parts)


def kernel_release(kernel: bytes) -> str:
    """The release in a bzImage with EFI stub (kernel: Documentation/arch/x86/boot.rst, `kernel_version`)."""
    if len(kernel) < 0x1000 or kernel[0x202:0x206] != b"HdrS":
        raise UkiError("the kernel is no bzImage", "uki-kernel")
    pe.parse(kernel)  # CONFIG_EFI_STUB: the bzImage is itself a PE image
    (pointer,) = struct.unpack_from("<H", kernel, 0x20E)
    text = kernel[pointer + 0x200 : pointer + 0x200 + 256]
    return text.split(b"\0")[0].split(b" ")[0].decode("ascii", "replace")


def read_uki(data: bytes) -> Uki:
    """Strict inverse of `build`. Raises UkiError or pe.PeError, never anything else, whatever the bytes."""
    found = read_head(data, len(data))
    if not pe.parse(data).content(data, ".linux"):
        raise UkiError("section .linux is empty", "uki-kernel")
    return found


def read_head(data: bytes, size: int) -> Uki:
    """What a file of `size` bytes says about itself by its beginning (HEAD bytes are enough). Raises as above."""
    image = pe.parse(data, size)
    texts: dict[str, str] = {}
    for name in SECTIONS[:3]:
        try:
            texts[name] = image.content(data, name).decode()
        except UnicodeDecodeError as error:
            raise UkiError(f"section {name} is no UTF-8 text", "uki-text") from error
    return Uki(texts[".osrel"], texts[".cmdline"], texts[".uname"], image.sections)
