"""The part of the PE/COFF format that a signed unified kernel image needs: sections, their addition, signatures.

Source: Microsoft PE Format specification, sections "MS-DOS Stub", "COFF File Header", "Optional Header" (PE32+),
"Section Table", "The Attribute Certificate Table" and "Calculating the PE Image Hash". Reading is strict and bounded:
every offset is checked before it is used. Standard library only.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import FormatError

MAX_SECTIONS = 96  # the limit of the Windows loader, which firmware follows
MAX_IMAGE = 1 << 30

_COFF = struct.Struct("<4sHHIIIHH")  # signature and COFF file header
_SECTION = struct.Struct("<8sIIIIIIHHI")
_PE32_PLUS = 0x20B
_MACHINE_OFFSETS = {"section_alignment": 32, "file_alignment": 36, "image_size": 56, "headers_size": 60, "checksum": 64}
_DIRECTORIES = 112  # in the PE32+ optional header
_SECURITY = 4  # index of the certificate table in the data directories
_CERTIFICATE = struct.Struct("<IHH")  # WIN_CERTIFICATE: length with this header, revision, type
_PKCS7 = (0x0200, 0x0002)  # WIN_CERT_REVISION_2_0, WIN_CERT_TYPE_PKCS_SIGNED_DATA
_MAX_SIGNATURES = 16
READ_ONLY_DATA = 0x40000040  # IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ


class PeError(FormatError):
    """Bytes that are no sound PE32+ image, or a section that cannot be added."""


@dataclass(frozen=True)
class Section:
    """One section header. address and size describe memory, offset and stored the file; all in bytes."""

    name: str
    address: int
    size: int
    offset: int
    stored: int
    flags: int


@dataclass(frozen=True)
class Image:
    """What the headers say; `table` is the file offset of the section table, `optional` that of the optional header;
    certificates: offset and size of the certificate table, (0, 0) when there is none."""

    machine: int
    optional: int
    table: int
    section_alignment: int
    file_alignment: int
    image_size: int
    headers_size: int
    certificates: tuple[int, int]
    sections: tuple[Section, ...]

    @property
    def signed(self) -> bool:
        """Whether it has a certificate table."""
        return any(self.certificates)

    def content(self, data: bytes, name: str) -> bytes:
        """The bytes of the only section of that name, without padding. Raises PeError when there is not exactly one."""
        found = [section for section in self.sections if section.name == name]
        if len(found) != 1:
            raise PeError(f"the image has {len(found)} sections {name}, expected one", "pe-section")
        content = data[found[0].offset :][: min(found[0].size, found[0].stored)]
        if len(content) < min(found[0].size, found[0].stored):
            raise PeError(f"section {name} is not within the bytes that were read", "pe-bounds")
        return content


def parse(data: bytes, size: int | None = None) -> Image:
    """Read the headers of a PE32+ image. size: of the file, when `data` is only its beginning.

    Raises PeError for anything unsound or out of bounds.
    """
    size = len(data) if size is None else size
    if size > MAX_IMAGE or len(data) < 64 or data[:2] != b"MZ":
        raise PeError("this is no PE image", "pe-magic")
    start: int = struct.unpack_from("<I", data, 0x3C)[0]
    if start + _COFF.size > len(data):
        raise PeError("the PE header lies outside the file", "pe-bounds")
    signature, machine, count, _, _, _, optional_size, _ = _COFF.unpack_from(data, start)
    if signature != b"PE\0\0":
        raise PeError("this is no PE image", "pe-magic")
    optional = start + _COFF.size
    table = optional + optional_size
    if optional_size < _DIRECTORIES or table + count * _SECTION.size > len(data) or count > MAX_SECTIONS:
        raise PeError("the PE headers lie outside the file", "pe-bounds")
    if struct.unpack_from("<H", data, optional)[0] != _PE32_PLUS:
        raise PeError("this is no 64-bit PE image", "pe-class")
    fields = {name: struct.unpack_from("<I", data, optional + at)[0] for name, at in _MACHINE_OFFSETS.items()}
    for name in ("section_alignment", "file_alignment"):
        if fields[name] not in {1 << bit for bit in range(17)}:
            raise PeError(f"{name} {fields[name]} is no power of two up to 64 KiB", "pe-alignment")
    return Image(
        machine=machine,
        optional=optional,
        table=table,
        section_alignment=fields["section_alignment"],
        file_alignment=fields["file_alignment"],
        image_size=fields["image_size"],
        headers_size=fields["headers_size"],
        certificates=_certificates(data, optional, optional_size),
        sections=tuple(_sections(data, table, count, size)),
    )


def _certificates(data: bytes, optional: int, optional_size: int) -> tuple[int, int]:
    directories: int = struct.unpack_from("<I", data, optional + _DIRECTORIES - 4)[0]
    if directories > 16 or optional_size < _DIRECTORIES + directories * 8:
        raise PeError(f"{directories} data directories do not fit", "pe-bounds")
    if directories <= _SECURITY:
        return 0, 0
    found: tuple[int, int] = struct.unpack_from("<II", data, optional + _DIRECTORIES + _SECURITY * 8)
    return found


def _sections(data: bytes, table: int, count: int, whole: int) -> list[Section]:
    found: list[Section] = []
    for number in range(count):
        raw_name, size, address, stored, offset, _, _, _, _, flags = _SECTION.unpack_from(
            data, table + number * _SECTION.size
        )
        try:
            name = raw_name.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise PeError(f"section {number} has a name that is not ASCII", "pe-section") from error
        if offset + stored > whole or address + size > MAX_IMAGE:
            raise PeError(f"section {name} lies outside the file", "pe-bounds")
        found.append(Section(name, address, size, offset, stored, flags))
    return found


def _up(value: int, alignment: int) -> int:
    return -(-value // alignment) * alignment


def append(data: bytes, new: Sequence[tuple[str, bytes]], address_alignment: int = 4096) -> bytes:
    """`data` with read-only data sections added in the given order behind the existing ones.

    VirtualSize is the exact length (the stub takes it as the section's size); file data is padded to FileAlignment. A
    leftover symbol table is unlinked, since images must not have one. The checksum field is set. Raises PeError when
    the image is signed, a name is taken, or the header has no room for the section table to grow.
    """
    image = parse(data)
    if image.signed:
        raise PeError("a signed image cannot get more sections", "pe-signed")
    names = [section.name for section in image.sections] + [name for name, _ in new]
    if len(set(names)) != len(names) or len(names) > MAX_SECTIONS:
        raise PeError(f"sections are named twice or are too many: {names}", "pe-section")
    table_end = image.table + len(names) * _SECTION.size
    first_data = min((section.offset for section in image.sections if section.stored), default=len(data))
    if table_end > min(first_data, image.headers_size):
        raise PeError(f"no room in the header for {len(new)} more sections", "pe-no-room")
    alignment = max(address_alignment, image.section_alignment)
    address = _up(max((section.address + section.size for section in image.sections), default=0), alignment)
    out = bytearray(data)
    added = 0
    for position, (name, content) in enumerate(new, len(image.sections)):
        encoded = name.encode("ascii")
        if len(encoded) > 8 or not content:
            raise PeError(f"section {name!r} is empty or its name too long", "pe-section")
        out += bytes(-len(out) % image.file_alignment)
        stored = _up(len(content), image.file_alignment)
        _SECTION.pack_into(
            out,
            image.table + position * _SECTION.size,
            *(encoded, len(content), address, stored, len(out), 0, 0, 0, 0, READ_ONLY_DATA),
        )
        out += content + bytes(stored - len(content))
        added += stored
        end = address + len(content)
        address = _up(end, alignment)
    _finish(out, image, names, added, end if new else image.image_size)
    if len(out) > MAX_IMAGE:
        raise PeError("the image would exceed 1 GiB", "pe-bounds")
    return bytes(out)


def _finish(out: bytearray, image: Image, names: list[str], added: int, end: int) -> None:
    """Bring the counts, sizes and checksum of the headers up to date."""
    coff = image.optional - _COFF.size
    struct.pack_into("<H", out, coff + 6, len(names))
    struct.pack_into("<II", out, coff + 12, 0, 0)  # PointerToSymbolTable, NumberOfSymbols
    (initialized,) = struct.unpack_from("<I", out, image.optional + 8)
    struct.pack_into("<I", out, image.optional + 8, initialized + added)
    struct.pack_into("<I", out, image.optional + _MACHINE_OFFSETS["image_size"], _up(end, image.section_alignment))
    at = image.optional + _MACHINE_OFFSETS["checksum"]
    struct.pack_into("<I", out, at, 0)
    struct.pack_into("<I", out, at, checksum(out))


def checksum(data: bytes | bytearray) -> int:
    """The PE checksum: 16-bit words added with end-around carry, plus the length; the checksum field must be zero."""
    padded = bytes(data) + bytes(-len(data) % 2)
    # A sum of 16-bit words with end-around carry equals the number modulo 65535, which Python computes in C.
    total = int.from_bytes(padded, "little") % 0xFFFF
    return total + len(data)


# --- signatures -------------------------------------------------------------------------------------------------------


def _body_end(data: bytes, image: Image) -> int:
    """Where the certificate table begins, or the file ends. Raises PeError unless the table is the end of the file."""
    if not image.signed:
        return len(data)
    start, size = image.certificates
    last = max((section.offset + section.stored for section in image.sections), default=image.headers_size)
    if start % 8 or start < last or start + size != len(data):
        raise PeError("the certificate table is not the end of the file", "pe-certificates")
    return start


def extent(data: bytes, most: int) -> int:
    """How long the image is of which this is the beginning, `most` bytes at most. Raises PeError."""
    image = parse(data, most)
    ends = [image.headers_size, sum(image.certificates), *(one.offset + one.stored for one in image.sections)]
    if max(ends) > most:
        raise PeError("the image is longer than it may be", "pe-bounds")
    return max(ends)


def signatures(data: bytes) -> list[bytes]:
    """The Authenticode signatures (PKCS #7, DER, perhaps with padding) of an image. Raises PeError."""
    image = parse(data)
    found: list[bytes] = []
    at = _body_end(data, image)
    while at < len(data):
        if len(data) - at < _CERTIFICATE.size or len(found) == _MAX_SIGNATURES:
            raise PeError("the certificate table is cut off, or has too many signatures", "pe-certificates")
        length, *kind = _CERTIFICATE.unpack_from(data, at)
        if length <= _CERTIFICATE.size or at + length > len(data) or tuple(kind) != _PKCS7:
            raise PeError("the certificate table holds something else than signatures", "pe-certificates")
        found.append(data[at + _CERTIFICATE.size : at + length])
        at += _up(length, 8)
    return found


def unsigned(data: bytes) -> bytes:
    """An image without its certificate table: what was signed, with the zeros that fill it up to 8 bytes, and with the
    checksum of that. Two images are the same but for their signatures if this is the same. Raises PeError."""
    image = parse(data)
    out = bytearray(data[: _body_end(data, image)])
    out += bytes(-len(out) % 8)
    if image.signed:
        struct.pack_into("<II", out, image.optional + _DIRECTORIES + _SECURITY * 8, 0, 0)
    at = image.optional + _MACHINE_OFFSETS["checksum"]
    struct.pack_into("<I", out, at, 0)
    struct.pack_into("<I", out, at, checksum(out))
    return bytes(out)


def authenticode(data: bytes, algorithm: str = "sha256") -> bytes:
    """The digest that signatures of an image and lists of hashes are about: everything but the checksum, the place of
    the certificate table and the table itself. Raises PeError."""
    image = parse(data)
    end = _body_end(data, image)
    checked = image.optional + _MACHINE_OFFSETS["checksum"]
    directory = image.optional + _DIRECTORIES + _SECURITY * 8
    if not directory + 8 <= image.headers_size <= end or directory + 8 > image.table:
        raise PeError("the headers have no place for a certificate table", "pe-certificates")
    digest = hashlib.new(algorithm)
    view = memoryview(data)
    for start, stop in ((0, checked), (checked + 4, directory), (directory + 8, image.headers_size)):
        digest.update(view[start:stop])
    at = image.headers_size
    for section in sorted((one for one in image.sections if one.stored), key=lambda one: one.offset):
        if section.offset + section.stored > end:
            raise PeError(f"section {section.name} reaches into the certificate table", "pe-certificates")
        digest.update(view[section.offset : section.offset + section.stored])
        at += section.stored
    if at > end:
        raise PeError("sections lie over each other", "pe-bounds")
    digest.update(view[at:end])
    return digest.digest()
