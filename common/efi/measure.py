"""What the stub of a unified kernel image measures into PCR 11, and the TPM policy that follows from it.

Source: systemd 257, systemd-stub(7) and docs/TPM2_PCR_MEASUREMENTS.md; TPM 2.0 library, part 3, TPM2_PolicyPCR.
Standard library only.
"""

from __future__ import annotations

import hashlib
import struct

from common.efi import pe

PCR = 11
# The order of measuring, whatever the order in the file. `.pcrsig` is not measured: it signs the result.
SECTIONS = (
    ".linux",
    ".osrel",
    ".cmdline",
    ".initrd",
    ".ucode",
    ".splash",
    ".dtb",
    ".uname",
    ".sbat",
    ".pcrpkey",
    ".profile",
    ".dtbauto",
    ".hwids",
)
_TPM_HASHES = {"sha1": 0x0004, "sha256": 0x000B, "sha384": 0x000C, "sha512": 0x000D}  # TPM_ALG_ID
_POLICY_PCR = 0x0000017F  # TPM_CC_PolicyPCR


def pcr(image: bytes, algorithm: str = "sha256") -> bytes:
    """The value of PCR 11 in a bank after the stub has started this image, as long as nothing else extends it.

    Raises pe.PeError for an image that is unsound, or has a section with more memory than content.
    """
    headers = pe.parse(image)
    sections = {section.name: section for section in headers.sections}
    value = bytes(hashlib.new(algorithm).digest_size)
    for name in SECTIONS:
        if name not in sections:
            continue
        content = headers.content(image, name)
        if len(content) != sections[name].size:
            raise pe.PeError(f"section {name} has more memory than content", "pe-section")
        for measured in (name.encode() + b"\0", content):
            value = _extended(value, measured, algorithm)
    return value


def _extended(value: bytes, measured: bytes, algorithm: str) -> bytes:
    return hashlib.new(algorithm, value + hashlib.new(algorithm, measured).digest()).digest()


def policy(value: bytes, algorithm: str = "sha256") -> bytes:
    """The digest (SHA-256) of a policy that is fulfilled while PCR 11 of this bank has this value."""
    selected = struct.pack(">IHB", 1, _TPM_HASHES[algorithm], 3) + (1 << PCR).to_bytes(3, "little")
    command = struct.pack(">I", _POLICY_PCR)
    return hashlib.sha256(bytes(32) + command + selected + hashlib.sha256(value).digest()).digest()
