"""Made-up images, as large as a test needs: kernel, boot stub, root, and the actions that assemble them."""

from __future__ import annotations

import io
import struct
import tarfile
from pathlib import Path

from buildsys.job import Job
from image import assemble

RELEASE = "6.6.8-mixos"


def pe_image(sections: list[tuple[str, bytes]], *, room: int = 1024, signed: bool = False) -> bytes:
    """A minimal PE32+ image with the given sections, made by the specification."""
    optional = bytearray(240)
    struct.pack_into("<H", optional, 0, 0x20B)
    struct.pack_into("<IIII", optional, 32, 4096, 512, 0, 0)
    struct.pack_into("<II", optional, 56, 4096 * (len(sections) + 1), room)
    struct.pack_into("<I", optional, 108, 16)
    struct.pack_into("<II", optional, 112 + 4 * 8, *((512, 8) if signed else (0, 0)))
    coff = struct.pack("<4sHHIIIHH", b"PE\0\0", 0x8664, len(sections), 0, 999, 5, 240, 0x206)
    headers = b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 64) + coff + bytes(optional)
    body = b""
    for number, (name, content) in enumerate(sections):
        stored = content.ljust(-(-len(content) // 512) * 512, b"\0")
        headers += struct.pack(
            "<8sIIIIIIHHI", name.encode(), len(content), 4096 * (number + 1), len(stored), room + len(body), *[0] * 5
        )
        body += stored
    return headers.ljust(room, b"\0") + body


def kernel(release: str = RELEASE) -> bytes:
    """A PE image that is a bzImage as far as its header goes."""
    data = bytearray(pe_image([(".text", bytes(9000))], room=4096))
    data[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", data, 0x20E, 0xE00)
    text = f"{release} (build@host) #1\0".encode()
    data[0x1000 : 0x1000 + len(text)] = text
    return bytes(data)


STUB = pe_image([(".text", b"code" * 300), (".sbat", b"sbat")])
SMALL = {"esp": 160, "slot": 16, "data": 16}
LOADER = pe_image([(".text", b"the boot manager")])
BOOT = "usr/lib/systemd/boot/efi"


def ar_member(name: str, data: bytes) -> bytes:
    return f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode() + data + b"\n" * (len(data) % 2)


def package(path: Path, files: dict[str, bytes]) -> Path:
    """A Debian package that holds these files."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:xz") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo("./" + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    members = (
        ar_member("debian-binary", b"2.0\n")
        + ar_member("control.tar.xz", b"odd")
        + ar_member("data.tar.xz", raw.getvalue())
    )
    path.write_bytes(b"!<arch>\n" + members)
    return path


class Bench:
    """Runs the three actions in a folder, the way the executor does."""

    def __init__(self, base: Path, root: bytes, **params: object) -> None:
        self.base = base
        self.params = {"version": "1.2.3", "seed": "abc", "layout": SMALL, "cmdline": "console=ttyS0  quiet", **params}
        (base / "root").mkdir(parents=True)
        (base / "root" / "root.squashfs").write_bytes(root)
        (base / "kernel").mkdir()
        (base / "kernel" / "bzImage").write_bytes(kernel())
        (base / "kernel" / "release").write_text(RELEASE + "\n")
        (base / "cmdline").write_text("panic=10\nslab_nomerge\npti=on\n")
        self.inputs: dict[str, Path] = {
            "root": base / "root",
            "kernel": base / "kernel",
            "cmdline": base / "cmdline",
            "systemd-stub-efi": package(base / "stub.deb", {f"{BOOT}/linuxx64.efi.stub": STUB}),
            "systemd-boot-efi": package(base / "boot.deb", {f"{BOOT}/systemd-bootx64.efi": LOADER}),
        }

    def boot_files(self, rescue: bytes, loader: bytes) -> None:
        """With a rescue entry, and another loader."""
        (self.base / "rescue").mkdir()
        (self.base / "rescue" / assemble.RESCUE_FILE).write_bytes(rescue)
        self.inputs["rescue"] = self.base / "rescue"
        self.inputs["systemd-boot-efi"] = package(self.base / "boot.deb", {f"{BOOT}/systemd-bootx64.efi": loader})

    def run(self, name: str) -> Path:
        out = self.base / f"out-{name}"
        out.mkdir()
        job = Job(self.inputs, out, self.base, self.params, epoch=1703030400, jobs=1)
        {"verity": assemble.verity, "uki": assemble.uki, "disk": assemble.disk}[name](job)
        self.inputs[name] = out
        return out

    def image(self) -> Path:
        for name in ("verity", "uki", "disk"):
            self.run(name)
        return self.inputs["disk"] / "mixos-1.2.3-x86_64.img"


ROOT = bytes(8192) + b"root file system" * 4096 + bytes(4096)
