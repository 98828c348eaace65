"""First messages of TLS clients: what the library says, and what one may make up."""

from __future__ import annotations

import contextlib
import ssl


def hello(name: str | None = "a.test", **versions: ssl.TLSVersion) -> bytes:
    """What this host's TLS library really sends."""
    context = ssl.create_default_context()
    context.check_hostname = False
    for which, version in versions.items():
        setattr(context, which, version)
    out = ssl.MemoryBIO()
    channel = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        channel.do_handshake()
    return out.read()


def records(message: bytes, size: int) -> bytes:
    """A handshake message in records of `size` bytes."""
    parts = (message[at : at + size] for at in range(0, len(message), size))
    return b"".join(b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part for part in parts)


def extended(*extensions: tuple[int, bytes], tail: bytes = b"") -> bytes:
    """A ClientHello with these extensions."""
    listed = b"".join(kind.to_bytes(2, "big") + len(data).to_bytes(2, "big") + data for kind, data in extensions)
    body = (
        b"\x03\x03"
        + bytes(32)
        + b"\x00"
        + b"\x00\x02\x13\x01"
        + b"\x01\x00"
        + len(listed).to_bytes(2, "big")
        + listed
        + tail
    )
    return records(b"\x01" + len(body).to_bytes(3, "big") + body, 1 << 14)


def named(*names: bytes, kind: int = 0) -> tuple[int, bytes]:
    listed = b"".join(bytes([kind]) + len(name).to_bytes(2, "big") + name for name in names)
    return 0, len(listed).to_bytes(2, "big") + listed
