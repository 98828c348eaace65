"""The outer format of a backup: a header, then a compressed stream in authenticated chunks.

    offset 0   magic "MIXOSBK\\n"
           8   version, big-endian 16 bit: 1
          10   cipher: 0 none, 1 ChaCha20-Poly1305 (RFC 8439) with a key from scrypt (RFC 7914)
          11   compression: 1 zlib (RFC 1950)
          12   scrypt: log2 N, r, p (16 bit)
          16   salt, 16 bytes
          32   tag of the 32 bytes before, 16 bytes
          48   chunks: 64 KiB of the zlib stream and a tag of 16 bytes each; the last one has 1 byte to 64 KiB

Chunks follow the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár 2015): the nonce is the chunk's number (11
bytes, big-endian) and a byte that is 1 for the last chunk only. So chunks cannot be swapped, dropped, repeated or cut
off. A salt is used once, hence so is the key. scrypt gives 64 bytes: 32 for the chunks, 32 for HMAC-SHA256 over the
header, which tells a wrong passphrase from a damaged file. Without a cipher the tags are BLAKE2b: they find damage, not
intent. Everything that is read is bounded before it is used.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from common.errors import MixosError, RefusedError

MAGIC = b"MIXOSBK\n"
VERSION = 1
CHUNK = 64 << 10
TAG = 16
HEADER = 48  # bytes, tag included
SHORTEST = 10  # characters of a passphrase
LOG_N = 15  # 2^15 x 8 x 128 bytes: 32 MiB while the key is made

_HEAD = struct.Struct(">8sHBBBBH16s")
_ZLIB = 1
_MAX_LOG_N, _MAX_R, _MAX_P = 17, 8, 4  # 128 MiB at most: a file must not exhaust a small device
_PIECE = 256 << 10  # bytes that are unpacked at a time


class BackupError(MixosError):
    """A backup cannot be read, or is not one. Reasons begin with `backup-`."""

    exit_code = 8


@dataclass(frozen=True)
class Header:
    """What can be said without the passphrase."""

    version: int
    encrypted: bool
    raw: bytes  # the first 32 bytes
    tag: bytes


class Stream(Protocol):
    """A file, or whatever else can be read once."""

    def read(self, count: int, /) -> bytes:
        """1 to `count` bytes, b"" at the end."""


class Box(Protocol):
    """Seals and opens chunks."""

    header_tag: bytes

    def seal(self, nonce: bytes, data: bytes) -> bytes:
        """A chunk with its tag."""

    def open(self, nonce: bytes, data: bytes) -> bytes | None:
        """What is in a chunk; None when it is not what was sealed."""


class _Cipher:
    """With a passphrase."""

    def __init__(self, head: bytes, passphrase: str) -> None:
        from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305  # heavy: only when needed

        *_, log_n, r, p, salt = _HEAD.unpack(head)
        memory = 128 * r * ((1 << log_n) + p + 2) + (1 << 20)
        secret = passphrase.encode("utf-8", "surrogatepass")
        key = hashlib.scrypt(secret, salt=salt, n=1 << log_n, r=r, p=p, maxmem=memory, dklen=64)
        self._cipher = ChaCha20Poly1305(key[:32])
        self._head = head
        self.header_tag = hmac.digest(key[32:], head, "sha256")[:TAG]

    def seal(self, nonce: bytes, data: bytes) -> bytes:
        return self._cipher.encrypt(nonce, data, self._head)

    def open(self, nonce: bytes, data: bytes) -> bytes | None:
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(nonce, data, self._head)
        except InvalidTag:
            return None


class _Plain:
    """Without one: whoever can write the file can change it."""

    def __init__(self, head: bytes) -> None:
        self._head = head
        self.header_tag = self._tag(b"", b"")

    def _tag(self, nonce: bytes, data: bytes) -> bytes:
        return hashlib.blake2b(self._head + nonce + data, digest_size=TAG).digest()

    def seal(self, nonce: bytes, data: bytes) -> bytes:
        return data + self._tag(nonce, data)

    def open(self, nonce: bytes, data: bytes) -> bytes | None:
        content = data[:-TAG]
        return content if hmac.compare_digest(self._tag(nonce, content), data[-TAG:]) else None


def seal(plain: Iterable[bytes], passphrase: str | None, log_n: int = LOG_N) -> Iterator[bytes]:
    """The bytes of a container with `plain` in it, piece by piece. Raises RefusedError `backup-passphrase-weak`."""
    if passphrase is not None and len(passphrase) < SHORTEST:
        raise RefusedError(
            f"the passphrase has fewer than {SHORTEST} characters",
            reason="backup-passphrase-weak",
            hint="whoever has the file can try as many as they like: take five or six random words",
        )
    cost = (0, 0, 0) if passphrase is None else (log_n, 8, 1)
    head = _HEAD.pack(MAGIC, VERSION, int(passphrase is not None), _ZLIB, *cost, os.urandom(16))
    box = _box(head, passphrase)
    yield head + box.header_tag
    number, pending = 0, bytearray()
    for piece in _packed(plain):
        pending += piece
        while len(pending) > CHUNK:  # one byte must be left for the last chunk
            yield box.seal(_nonce(number, False), bytes(pending[:CHUNK]))
            del pending[:CHUNK]
            number += 1
    yield box.seal(_nonce(number, True), bytes(pending))


def read_header(stream: Stream) -> Header:
    """The header. Raises BackupError `backup-format` (not a backup), `backup-too-new`, `backup-truncated`."""
    data = _read(stream, HEADER)
    if data[: len(MAGIC)] != MAGIC[: len(data)] or not data:
        raise BackupError("this is not a MixOS backup", reason="backup-format")
    if len(data) >= 10 and (version := int.from_bytes(data[8:10], "big")) > VERSION:
        raise BackupError(
            f"the backup has format {version}, this device reads up to {VERSION}",
            reason="backup-too-new",
            hint="it was made by a newer MixOS: update this device first",
        )
    if len(data) < HEADER:
        raise BackupError("the file ends within its header", reason="backup-truncated")
    _, version, cipher, compression, log_n, r, p, _ = _HEAD.unpack(data[: _HEAD.size])
    cost = 10 <= log_n <= _MAX_LOG_N and 1 <= r <= _MAX_R and 1 <= p <= _MAX_P
    if version != VERSION or compression != _ZLIB or not (cost if cipher == 1 else (cipher, log_n, r, p) == (0,) * 4):
        raise BackupError("the header of the backup is damaged", reason="backup-format")
    return Header(version, cipher == 1, data[: _HEAD.size], data[_HEAD.size :])


def unseal(stream: Stream, passphrase: str | None) -> Iterator[bytes]:
    """What was sealed, in pieces of at most 256 KiB, each authenticated before it is given.

    Only when the iteration ends by itself was the file whole. Raises RefusedError `backup-not-encrypted` (a passphrase
    was given: the file was swapped or confused), BackupError `backup-passphrase-needed`, `backup-passphrase`,
    `backup-damaged`, `backup-truncated` and those of `read_header`.
    """
    header = read_header(stream)
    yield from _unpacked(_chunks(stream, unlock(header, passphrase)))


def unlock(header: Header, passphrase: str | None) -> Box:
    """What opens the chunks of a container. Takes a tenth of a second, and memory as the header says (at most 128 MiB).

    Raises RefusedError `backup-not-encrypted`, BackupError `backup-passphrase-needed`, `backup-passphrase`,
    `backup-damaged`.
    """
    if not header.encrypted and passphrase is not None:
        raise RefusedError(
            "the backup is not encrypted, although a passphrase was given: anybody may have written it",
            reason="backup-not-encrypted",
            hint="--plain reads it nevertheless",
        )
    if header.encrypted and passphrase is None:
        raise BackupError("the backup is encrypted: its passphrase is needed", reason="backup-passphrase-needed")
    box = _box(header.raw, passphrase)
    if not hmac.compare_digest(box.header_tag, header.tag):
        if header.encrypted:
            raise BackupError("the passphrase is wrong, or the header damaged", reason="backup-passphrase")
        raise BackupError("the header of the backup is damaged", reason="backup-damaged")
    return box


def _chunks(stream: Stream, box: Box) -> Iterator[bytes]:
    number, chunk = 0, _read(stream, CHUNK + TAG)
    while True:
        following = _read(stream, CHUNK + TAG) if len(chunk) == CHUNK + TAG else b""
        content = box.open(_nonce(number, not following), chunk) if len(chunk) > TAG else None
        if content is None:
            cut = not following and len(chunk) > TAG and box.open(_nonce(number, False), chunk) is not None
            if cut or not chunk:
                raise BackupError("the file was cut off", reason="backup-truncated")
            where = HEADER + number * (CHUNK + TAG)
            raise BackupError(
                f"the backup is damaged (in the 64 KiB behind byte {where}) or cut off", reason="backup-damaged"
            )
        yield content
        if not following:
            return
        number, chunk = number + 1, following


def _read(stream: Stream, count: int) -> bytes:
    """So many bytes, or what is left. A pipe gives less at a time than was asked for."""
    data = bytearray()
    while len(data) < count and (piece := stream.read(count - len(data))):
        data += piece
    return bytes(data)


def _packed(plain: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(6)
    for piece in plain:
        yield packer.compress(piece)
    yield packer.flush()


def _unpacked(packed: Iterable[bytes]) -> Iterator[bytes]:
    """Raises BackupError `backup-damaged` for what is no zlib stream, or ends before or behind the last chunk."""
    unpacker = zlib.decompressobj()
    for chunk in packed:
        data = chunk
        while data and not unpacker.eof:
            try:
                piece = unpacker.decompress(data, _PIECE)
            except zlib.error as error:
                raise BackupError(f"the backup is damaged: {error}", reason="backup-damaged") from error
            if piece:
                yield piece
            data = unpacker.unconsumed_tail
        if unpacker.eof and (unpacker.unused_data or data):
            raise BackupError("there is something behind the end of the backup", reason="backup-damaged")
    if not unpacker.eof:
        raise BackupError("the backup ends within its content", reason="backup-damaged")


def _box(head: bytes, passphrase: str | None) -> Box:
    return _Plain(head) if passphrase is None else _Cipher(head, passphrase)


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([last])
