"""The readers of what an update brings and of what boots it, for `tests.readers`: bundles, who vouches for them, how
they come, what firmware and the loader read."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import random
import socket
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from uuid import UUID

from backports import zstd
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from securesystemslib.formats import encode_canonical
from tuf.api.metadata import MetaFile, Snapshot, Timestamp

from common import said
from common.bundle import container, frames, manifest, order, ranges, sealing, windows
from common.disk import fat, fatread, gpt
from common.efi import eventlog, pe, pkcs7, siglist, uki
from common.errors import BundleError, FormatError, MixosError, TpmError, TrustError, UsageError
from common.trust import openpgp
from common.trust.metadata import Kept, Trusted
from daemon import floor, unsealer
from daemon.linux.tpm import WRITELOCKED, WRITTEN, Tpm
from daemon.slots import stage
from image import secureboot
from tests.fuzzing import Reader
from tests.images import RELEASE, STUB, kernel, pe_image
from tests.plans import LEVEL, applied, image, planned, text
from tests.releases import NOW, Repository, Signer, hook, served, signed
from tests.releases import text as manifest_text
from tests.secureboot import signer

# -- bundles -----------------------------------------------------------------------------------------------------------

OLD = image([text(number, 3000) for number in range(6)])
NEW = image([text(number, 3000)[:50] + b"a changed line" + text(number, 3000)[60:] for number in range(4)])
_LENGTH = struct.Struct(">H")


def _front(data: bytes) -> object:
    """Behind a header that fits; all other mutations would end there."""
    head = container._HEAD.pack(container.MAGIC, 1, len(data), hashlib.sha256(data).digest())
    return container.read(io.BytesIO(head + data).read)


def _header(data: bytes) -> object:
    return container.read(io.BytesIO(data).read)


def _decrypted(data: bytes) -> object:
    reader = sealing.Reader(bytes(32), 0, lambda offset, length: data[offset : offset + length])
    found = reader.read(0, 1 << 20)
    assert not any(found), "what was encrypted, or its begin"
    return found


_PRIVATE = bytes(range(32))


def _sealed() -> bytes:
    """A device's sealed key behind another one's."""
    public = X25519PrivateKey.from_private_bytes(_PRIVATE).public_key().public_bytes_raw()
    return bytes(8 + 80) + sealing.name(public) + sealing.seal(bytes(32), public)


def _unsealed(data: bytes) -> object:
    answer = unsealer._answer(_PRIVATE, data)
    assert answer in (unsealer._OTHERS, unsealer._OPENED + bytes(32))
    return answer


def _public(data: bytes) -> object:
    public = sealing.read_public(data.decode("latin-1"))
    assert sealing.write_public(public) == data.decode("latin-1").strip()
    return public


def _plan(data: bytes) -> object:
    """The numbers of a plan, before they are packed."""
    plan = windows.read_plan(windows.MAGIC + zstd.compress(data, 1))
    assert 0 <= plan.transfer <= windows.MAX_SEGMENTS * (windows.REACH + (64 << 10)) * -(-plan.size // windows.WINDOW)
    return plan


def _numbers(plan: bytes) -> bytes:
    return zstd.decompress(plan[len(windows.MAGIC) :])


def _made(data: bytes) -> object:
    """The numbers of a plan with their length in front, then payload: what comes out is the new file, or nothing."""
    (length,) = _LENGTH.unpack_from(data.ljust(_LENGTH.size, b"\0"))
    numbers, payload = data[_LENGTH.size :][:length], data[_LENGTH.size :][length:]
    plan = windows.MAGIC + zstd.compress(numbers, 1)
    assert applied(plan, payload, OLD, windows.Target.of(NEW)) == NEW
    return plan


def _recipe(data: bytes) -> object:
    """A plan drawn from these bytes: what it makes is what its items say, by other words than those of the reader."""
    draw = random.Random(data)
    packing = windows.Packing(LEVEL) if draw.random() < 0.6 else None
    segments: list[windows.Segment] = []
    payload = plain = out = b""
    for _ in range(draw.randrange(4)):
        piece = draw.choice((OLD[draw.randrange(len(OLD)) :], draw.randbytes(2000), bytes(5000)))[
            : draw.randrange(1, 5000)
        ]
        ranges = tuple(_range(draw) for _ in range(draw.randrange(3)))
        prefix = b"".join(OLD[part.offset :][: part.length] for part in ranges)
        if packing:
            prefix = b"".join(b"".join(frames.expand(OLD[part.offset :][: part.length])) for part in ranges)
        base = zstd.ZstdDict(prefix, is_raw=True).as_prefix if len(prefix) >= 8 else None
        frame = zstd.compress(piece, LEVEL, zstd_dict=base)
        segments.append(windows.Segment(len(payload), len(frame), len(piece), ranges))
        payload, plain = payload + frame, plain + piece
    items: list[windows.Item] = []
    while plain or not items or draw.random() < 0.3:
        length = draw.randrange(1, 3000)
        if plain and draw.random() < 0.8:
            taken, plain = plain[:length], plain[length:]
            kind = windows.PACKED if packing and draw.random() < 0.5 else windows.PLAIN
            items.append(windows.Item(kind, len(taken)))
            out += frames.pack(taken, LEVEL) if kind == windows.PACKED else taken
        else:
            part = _range(draw)
            items.append(windows.Item(windows.COPY, part.length, part.offset))
            out += OLD[part.offset :][: part.length]
    over = any(item.kind == windows.PACKED for item in items)  # only then may something be left over
    lead, tail = (draw.randrange(9), draw.randrange(9)) if over else (0, 0)
    wanted = out[lead : max(lead + 1, len(out) - tail)]
    plan = windows.write_plan(len(wanted), len(OLD), packing, [windows.Recipe(lead, tuple(segments), tuple(items))])
    try:
        assert applied(plan, payload, OLD, windows.Target.of(wanted)) == wanted
    except BundleError as error:
        if error.reason == "window-hash":
            raise RuntimeError("it makes something else") from error
        raise
    return plan


def _range(draw: random.Random) -> windows.Range:
    offset = draw.randrange(len(OLD))
    return windows.Range(offset, min(draw.randrange(1, 4000), len(OLD) - offset))


def _parts(plan: bytes, payload: bytes) -> bytes:
    return _LENGTH.pack(len(_numbers(plan))) + _numbers(plan) + payload


def _order() -> bytes:
    """What is installed, as it is told."""
    files = [
        order.File(hashlib.sha256(data).digest(), windows.Target.of(data), (order.Piece(at, 100, bytes(32)),))
        for at, data in enumerate((NEW, OLD))
    ]
    numbers = {"sequence": 5, "created": 1_700_000_000, "payload": 4096, "transfer": 999}
    hashes = {"source": bytes(32), "root_hash": bytes(32), "salt": b"salt"}
    hooks = (order.Hook("before-stage", 30, order.Piece(0, 100, bytes(32))),)
    of_esp = {"rescue": files[0], "loader-conf": files[1]}
    made = {"root": files[0], "uki": files[1], "files": of_esp, "hooks": hooks}
    whole = order.Order("1.2.3", kernel=RELEASE, **made, **numbers, **hashes)
    return whole.dump().encode()


# -- who vouches for them ----------------------------------------------------------------------------------------------


def _signed(repository: Repository, role: str, body: object) -> bytes:
    payload = encode_canonical(body).encode()
    signatures = [signer.sign(payload).to_dict() for signer in repository.keys[role]]
    return json.dumps({"signed": body, "signatures": signatures}).encode()


class _Channel:
    """What is served, by keys of its own; `old` is what was trusted before the last release."""

    def __init__(self) -> None:
        self.repository, self.signer, self.message = Repository(roots=2), Signer(), manifest_text()
        trusted = Trusted(self.repository.anchor, Kept(), NOW)
        trusted.update(served(self.repository.copy()))
        self.old = trusted.kept
        self.repository.next_root()
        self.repository.release(self.message)
        self.pinned = openpgp.certificates(str(self.signer.cert).encode(), [self.signer.fingerprint])
        self.armored = self.signer.sign(self.message)
        one = self.repository
        self.files = one.copy()
        self.names = (
            ("root", f"{one.root.version}.root.json"),
            ("targets", f"{one.targets.version}.targets.json"),
            ("snapshot", f"{one.snapshot.version}.snapshot.json"),
            ("timestamp", "timestamp.json"),
        )

    def texts(self) -> dict[str, str]:
        return {name: data.decode() for name, data in self.files.items()}

    def changed(self, name: str) -> Callable[[bytes], object]:
        """One file is another; nothing but the list of releases that was signed is ever trusted."""

        def read(data: bytes) -> object:
            trusted = Trusted(self.repository.anchor, self.old, NOW)
            trusted.update(served(self.files | {name: data}))
            assert trusted.targets.targets == self.repository.targets.targets
            return trusted

        return read

    def signed(self, role: str, name: str) -> Callable[[bytes], object]:
        """One file is another, which its role and those that describe it have signed: what the thief of all keys but
        those of the root could make, or a fault."""

        def read(data: bytes) -> object:
            try:
                body = json.loads(data)
                files = self.files | {name: _signed(self.repository, role, body)}
                files |= self._described(role, files[name], body["version"])
            except Exception:  # noqa: BLE001  # nobody can sign that; it is no code of ours that says so
                return None
            trusted = Trusted(self.repository.anchor, self.old, NOW)
            trusted.update(served(files))
            return trusted

        return read

    def _described(self, role: str, data: bytes, version: int) -> dict[str, bytes]:
        """The files that describe one of targets or snapshot."""
        found: dict[str, bytes] = {}
        if role == "targets":
            snapshot = Snapshot(2, expires=self.repository.snapshot.expires)
            snapshot.meta["targets.json"] = MetaFile.from_data(version, data, ["sha256"])
            found[f"{version}.targets.json"] = data
            data, version = signed(snapshot, self.repository.keys["snapshot"]), 2
        if role in ("targets", "snapshot"):
            timestamp = Timestamp(3, expires=self.repository.timestamp.expires)
            timestamp.snapshot_meta = MetaFile.from_data(version, data, ["sha256"])
            found[f"{version}.snapshot.json"] = data
            found["timestamp.json"] = signed(timestamp, self.repository.keys["timestamp"])
        return found

    def body(self, name: str) -> bytes:
        return json.dumps(json.loads(self.files[name])["signed"]).encode()

    def signature(self, data: bytes) -> object:
        return openpgp.judge(self.pinned, self.message.encode(), [data.decode("latin-1")], NOW).certificates

    def packet(self, data: bytes) -> object:
        armor = f"-----BEGIN PGP SIGNATURE-----\n\n{base64.b64encode(data).decode()}\n-----END PGP SIGNATURE-----\n"
        return self.signature(armor.encode())

    def kept(self, data: bytes) -> object:
        """What a device has kept is another: nothing in it makes a root of a file that is none."""
        trusted = Trusted(self.repository.anchor, Kept.parse(data), NOW)
        trusted.update(served(self.files))
        assert trusted.root.version == self.repository.root.version
        return trusted


# -- how they come -----------------------------------------------------------------------------------------------------


def _connected(data: bytes) -> tuple[socket.socket, socket.socket]:
    """Ours, with these bytes and then the end in it, and the other end."""
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    theirs.setblocking(False)
    theirs.send(data[: 1 << 16])
    theirs.shutdown(socket.SHUT_WR)
    return ours, theirs


@cache
def _nowhere() -> int:
    return os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)


def _asked(data: bytes) -> object:
    """Whatever answers: at most as many bytes as were asked for."""
    ours, theirs = _connected(data)
    with ours, theirs, contextlib.suppress(MixosError):
        assert len(ranges.Ranges(ours.fileno(), _nowhere(), 0.0).read(5, 9)) <= 9
    return None


def _answer(data: bytes) -> bytes:
    return ranges.ANSWER.pack(ranges.DATA, len(data)) + data


def _failure() -> bytes:
    words = b'{"message": "gone", "reason": "fetch-gone", "retryable": true}'
    return ranges.ANSWER.pack(ranges.FAILED, len(words)) + words


def _answered(data: bytes) -> object:
    """Whatever asks: nothing but ranges of at most 1 MiB is read."""
    ours, theirs = _connected(data)

    def read(offset: int, length: int) -> bytes:
        assert offset >= 0
        assert 0 < length <= ranges.MAX_RANGE
        if offset % 3 == 1:
            raise BundleError("no", "no")
        return b"12345"[offset:][:length]

    with ours, theirs:
        ranges.answer(ours.fileno(), _nowhere(), read, 0.0)
    return None


_SAID = b"".join(b'{"step": "root", "done": %d, "of": 3, "fetched": 4096}\n' % number for number in range(3))
_FAILED = json.dumps({"error": MixosError("no", reason="x", hint="do").as_json()}).encode()


def _progress(data: bytes) -> object:
    """Said by the process that has lost all rights, to the one that writes the disk."""
    take, give = os.pipe()
    os.write(give, data)
    os.close(give)
    try:
        return [stage._progress(line) for line in stage._lines(take)]
    finally:
        os.close(take)


def _told(data: bytes) -> object:
    with contextlib.suppress(MixosError):
        return said.read(data)
    return None


# -- what boots them ---------------------------------------------------------------------------------------------------

_UKI = uki.build(STUB, kernel(), "quiet", "ID=mixos\nIMAGE_ID=mixos\nIMAGE_VERSION=1.0\n", RELEASE)


def _head(data: bytes) -> object:
    found = uki.read_head(data[: uki.HEAD], len(data) + 4096)
    return found.root_hash, found.identity("IMAGE_VERSION")


def _signed_image() -> bytes:
    """An image with a certificate table: two signatures that hold nothing."""
    whole = bytearray(pe_image([(".text", b"code" * 300)]))
    whole += bytes(-len(whole) % 8)
    start = len(whole)
    for content in (b"one", b"another one"):
        whole += struct.pack("<IHH", 8 + len(content), 0x0200, 0x0002) + content
        whole += bytes(-len(whole) % 8)
    optional = pe.parse(bytes(whole)).optional
    struct.pack_into("<II", whole, optional + 112 + 4 * 8, start, len(whole) - start)
    return bytes(whole)


def _signatures(data: bytes) -> object:
    return pe.signatures(data), pe.authenticode(data), pe.unsigned(data)


@cache
def _certificates() -> tuple[bytes, bytes]:
    """A certificate, and a signature that carries it."""
    from datetime import timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.hazmat.primitives.serialization import pkcs7 as making
    from cryptography.x509.oid import NameOID

    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fuzz")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(NOW).not_valid_after(NOW + timedelta(days=9))
    cert = builder.sign(key, hashes.SHA256())
    signing = making.PKCS7SignatureBuilder().set_data(b"data").add_signer(cert, key, hashes.SHA256())
    return cert.public_bytes(serialization.Encoding.DER), signing.sign(serialization.Encoding.DER, [])


def _databases() -> bytes:
    cert, _ = _certificates()
    owner = UUID(int=1)
    digests = [siglist.Signature(siglist.SHA256, owner, bytes([number]) * 32) for number in range(3)]
    return siglist.write([siglist.Signature(siglist.X509, owner, cert), *digests])


def _update() -> bytes:
    cert, signature = _certificates()
    return siglist.write_update(siglist.Update(NOW, signature, (siglist.Signature(siglist.X509, UUID(int=1), cert),)))


def _event_log() -> bytes:
    """Two events with a digest each, behind the one that describes the format."""
    spec = b"Spec ID Event03\0" + bytes(8) + struct.pack("<IHHB", 1, 0xB, 32, 0)
    log = struct.pack("<II20xI", 0, 3, len(spec)) + spec
    for kind in (0x80000004, 5):
        log += struct.pack("<IIIH32xI", 2, kind, 1, 0xB, 4) + b"data"
    return log


def _judged(data: bytes) -> object:
    """As dbx of a machine; what cannot be judged is a refusal."""
    entries = siglist.read(data)
    return siglist.refused({"image": _UKI}, entries, entries)


def _started(signed: bytes) -> Callable[[bytes], object]:
    """Firmware starts no other image by a signature, whatever is done to either."""
    db = siglist.write([siglist.Signature(siglist.X509, UUID(int=1), signer("db").der)])
    digest = pe.authenticode(signed)
    assert siglist.refusal(signed, db, b"") is None

    def judge(data: bytes) -> object:
        why = siglist.refusal(data, db, b"")
        assert why is not None or pe.authenticode(data) == digest
        return why

    return judge


# -- disks -------------------------------------------------------------------------------------------------------------


@cache
def _disk(sector: int) -> tuple[int, int, int, bytes]:
    """A disk of 2 MiB with a table: a descriptor, the bytes of both ends that have it, and what is there."""
    size, shape = 2 << 20, gpt.Geometry().on(sector)
    parts = (
        gpt.Partition(1, gpt.TYPE_ESP, UUID(int=1), 1 << 20, (3 << 19) - 1, "MIXOS-ESP"),
        gpt.Partition(2, gpt.TYPE_LINUX_DATA, UUID(int=2), 3 << 19, (7 << 18) - 1, "mixos-data", 1 << 60),
    )
    placed = tuple(
        replace(one, first=one.first // sector, last=(one.last + 1) // sector - 1, sector=sector) for one in parts
    )
    descriptor = os.memfd_create("disk")
    os.truncate(descriptor, size)
    gpt.write(descriptor, gpt.Table(UUID(int=3), size // sector, placed, geometry=shape))
    front, back = (shape.sectors + 2) * sector, (shape.sectors + 1) * sector
    return descriptor, front, back, os.pread(descriptor, front, 0) + os.pread(descriptor, back, size - back)


def _with_checksums(data: bytearray, header: int, entries: int, sector: int) -> None:
    """Those that the bytes should have; nearly all mutations would end there."""
    with contextlib.suppress(struct.error):
        (count, size) = struct.unpack_from("<II", data, header + 80)
        struct.pack_into("<I", data, header + 88, zlib.crc32(data[entries : entries + min(count * size, 32 << 10)]))
        (size,) = struct.unpack_from("<I", data, header + 12)
        whole = data[header : header + 16] + bytes(4) + data[header + 20 : header + min(size, sector)]
        struct.pack_into("<I", data, header + 16, zlib.crc32(whole))


def _table(sector: int) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        descriptor, first, last, _ = _disk(sector)
        front, back = bytearray(data[:first].ljust(first, b"\0")), bytearray(data[first:][:last].ljust(last, b"\0"))
        if data[:1] != b"\1":  # a way to leave them wrong
            _with_checksums(front, sector, 2 * sector, sector)
            _with_checksums(back, last - sector, 0, sector)
        os.pwrite(descriptor, front, 0)
        os.pwrite(descriptor, back, (2 << 20) - last)
        table = gpt.read(descriptor)
        for part in table.partitions:
            table.grown(part)
        for other in gpt.SECTORS:
            with contextlib.suppress(gpt.GptError):
                table.resized(4 << 20, other)
        return table

    return read


@cache
def _volume() -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """A descriptor with a FAT32 file system, its size, and where the bytes lie that say where things are."""
    size = 136 << 20
    descriptor = os.memfd_create("esp")
    os.truncate(descriptor, size)
    files = {
        "loader/loader.conf": b"x" * 100,
        "EFI/BOOT/BOOTX64.EFI": b"y" * 5000,
        "EFI/Linux/abcde+3.efi": b"u" * 9000,
        "EFI/Linux/a name of three slots +2-1.efi": b"z",
    }
    fat.write(descriptor, 0, size, files, volume_id=1, label="MIXOS-ESP", epoch=0)
    shape = fat.geometry(size, 512)
    first, data = fat.RESERVED * 512, shape.place(2)
    return descriptor, size, ((0, 90), (510, 512), (first, first + 128), (data, data + 16 * shape.cluster))


def _pieces() -> bytes:
    descriptor, _, places = _volume()
    return b"".join(os.pread(descriptor, end - at, at) for at, end in places)


def _fat(read: Callable[[int, int], object]) -> Callable[[bytes], object]:
    def given(data: bytes) -> object:
        descriptor, size, places = _volume()
        for at, end in places:
            piece, data = data[: end - at], data[end - at :]
            os.pwrite(descriptor, piece.ljust(end - at, b"\0"), at)
        return read(descriptor, size)

    return given


def _names(descriptor: int, size: int) -> object:
    """What a device reads of its ESP before anything else."""
    return [(path, entry.size) for path, entry in fatread.files(fatread.open_volume(descriptor, 0, size))]


def _tpm(data: bytes) -> object:
    """Answers of a TPM, each with its length in front, to whoever asks which floor it keeps."""
    ours, other = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with ours, other:
        for _ in range(4):
            (length,) = _LENGTH.unpack_from(data.ljust(_LENGTH.size, b"\0"))
            answer, data = data[_LENGTH.size :][:length], data[_LENGTH.size :][length:]
            other.sendall(answer[:8192])
        other.shutdown(socket.SHUT_WR)
        return floor.kept(Tpm(ours.fileno(), 0.0))


def _tpm_answers() -> bytes:
    """It keeps a floor in one place, and nothing in the other."""
    state = floor.ATTRIBUTES | WRITTEN | WRITELOCKED
    public = struct.pack(">HIHIHH", 14, floor.PLACES[0], 0xB, state, 0, floor.CONTENT.size)
    public += struct.pack(">HH", 34, 0xB) + bytes(32)
    content = struct.pack(">IH", 18, 16) + floor.CONTENT.pack(floor.MAGIC, 8) + bytes(5)
    answers = (0x8001, 0, public), (0x8002, 0, content), (0x8001, 0x18B, b"")
    whole = [struct.pack(">HII", tag, 10 + len(body), code) + body for tag, code, body in answers]
    return b"".join(_LENGTH.pack(len(one)) + one for one in whole)


def _pe(data: bytes) -> object:
    uki.read_uki(data)
    return pe.append(data, [(".more", b"more")])


# -- all ---------------------------------------------------------------------------------------------------------------


def readers() -> list[Reader]:
    """Mutations of a bundle's front and of metadata that fit their hashes and signatures, and such that do not."""
    bundle, trust, form, mixed = (BundleError,), (TrustError,), (FormatError,), (BundleError, TrustError)
    channel = _Channel()
    plan, payload = planned(NEW, OLD)
    sealed = {bytes(8): bytes(80), bytes(range(8)): bytes(range(80))}
    front = container.dump(container.Front(channel.message, (channel.armored,), channel.texts(), sealed))
    certificate, signature = _certificates()
    log = _event_log()
    by_db = secureboot.sign(pe_image([(".text", b"code" * 300)]), signer("db"))
    return [
        Reader("bundle", [front], _header, bundle),
        Reader("front of a bundle", [front[48:]], _front, bundle),
        Reader("encrypted payload", [b"".join(sealing.encrypted(bytes(32), [bytes(70_000)]))], _decrypted, bundle),
        Reader("sealed keys", [_sealed()], _unsealed, ()),
        Reader("key of a device", [sealing.write_public(bytes(32)).encode()], _public, (UsageError,)),
        Reader(
            "manifest",
            [channel.message.encode(), manifest_text(hooks=[hook()]).encode()],
            lambda data: manifest.parse(data.decode("latin-1")),
            bundle,
        ),
        Reader("order", [_order()], lambda data: order.parse(data.decode("latin-1")), bundle),
        Reader("plan", [windows.MAGIC + plan[8:]], windows.read_plan, bundle),
        Reader("numbers of a plan", [_numbers(plan)], _plan, bundle),
        Reader("windows of a plan", [_parts(plan, payload)], _made, bundle),
        Reader("recipes of windows", [bytes(32)], _recipe, bundle, 5),
        *(
            Reader(f"TUF, {role}", [channel.files[name]], channel.changed(name), trust, 20)
            for role, name in channel.names
        ),
        *(
            Reader(f"TUF, {role}, signed", [channel.body(name)], channel.signed(role, name), trust, 10)
            for role, name in channel.names
        ),
        Reader("what was trusted", [channel.old.dump()], channel.kept, trust, 10),
        Reader("OpenPGP text", [channel.armored.encode()], channel.signature, mixed),
        Reader("OpenPGP packet", list(openpgp.packets(channel.armored)), channel.packet, mixed),
        Reader("answer of a source", [_answer(b"12345"), _answer(b"123456789"), _failure()], _asked, ()),
        Reader("question to a source", [ranges.QUESTION.pack(4, 9) * 3, ranges.QUESTION.pack(0, 1)], _answered, bundle),
        Reader("progress of windows", [_SAID], _progress, (MixosError, ValueError)),
        Reader("error of a program", [_FAILED], _told, (ValueError,)),
        Reader("PE", [_UKI], _pe, form),
        Reader("head of a UKI", [_UKI], _head, form),
        Reader("signatures of a PE", [_signed_image()], _signatures, form),
        Reader("signed image", [by_db], _started(by_db), ()),
        Reader("PKCS #7", [signature], pkcs7.certificates, form),
        Reader("X.509", [certificate], pkcs7.certificate, form),
        Reader("signature list", [_databases()], _judged, form),
        Reader("update of a variable", [_update()], siglist.read_update, form),
        Reader("event log", [log], eventlog.option_roms, form),
        Reader("TPM", [_tpm_answers()], _tpm, (TpmError,)),
        Reader("GPT and MBR", [_disk(512)[3]], _table(512), form),
        Reader("GPT of large sectors", [_disk(4096)[3]], _table(4096), form),
        Reader("FAT", [_pieces()], _fat(lambda descriptor, size: fatread.read_files(descriptor, 0, size)), form),
        Reader("names on an ESP", [_pieces()], _fat(_names), form),
    ]
