"""A very small HTTP/1.1 server for one document (RFC 9110, RFC 9112): GET and HEAD of /metrics, a request a connection.

It runs in a process of its own, which gets the listening socket and asks mixosd for the document. Everything is
bounded: the head in bytes and seconds, the answer in seconds, the connections in number. A body is neither expected nor
read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

from daemon.core.worker.channel import Handler
from daemon.core.worker.child import Host

PATH = "/metrics"
MAX_HEAD = 8 << 10  # bytes
HEAD_SECONDS = 5.0
SEND_SECONDS = 10.0
MAX_CONNECTIONS = 8
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_FREEBIND, _IPV6_FREEBIND = 15, 78  # linux/in.h, linux/in6.h
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}")  # RFC 9110 section 5.6.2
_TARGET = re.compile(rb"/[\x21-\x7e]*")
_STATUS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}


class Answer(NamedTuple):
    """What to send: a status, and whether without the body (HEAD)."""

    status: int
    head_only: bool = False


def judge(head: bytes) -> Answer:
    """The status for the head of a request, from its first byte to the empty line. Never raises."""
    lines = head.split(b"\r\n")
    words = lines[0].split(b" ")
    if lines[-2:] != [b"", b""] or len(words) != 3 or not _TOKEN.fullmatch(words[0]) or not _TARGET.fullmatch(words[1]):
        return Answer(400)
    if not re.fullmatch(rb"HTTP/[0-9]\.[0-9]", words[2]):
        return Answer(400)
    if not words[2].startswith(b"HTTP/1."):
        return Answer(505)
    hosts = 0
    for line in lines[1:-2]:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name) or any(byte < 0x20 and byte != 0x09 for byte in value):
            return Answer(400)
        hosts += name.lower() == b"host"
    if hosts > 1 or (hosts == 0 and words[2] != b"HTTP/1.0"):
        return Answer(400)
    if words[1].partition(b"?")[0] != PATH.encode():
        return Answer(404)
    if words[0] not in (b"GET", b"HEAD"):
        return Answer(405)
    return Answer(200, words[0] == b"HEAD")


def listen(host: str, port: int) -> socket.socket:
    """Listen; the address need not be there yet (ip(7), IP_FREEBIND): a lease may come later. Raises OSError."""
    six = ":" in host
    listener = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if six:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.setsockopt(*((socket.IPPROTO_IPV6, _IPV6_FREEBIND) if six else (socket.IPPROTO_IP, _FREEBIND)), 1)
        listener.bind((host, port))
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


class Endpoint:
    """The server, in its process. It gets the listening socket as its file; mixosd answers `document`, a text."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._open = 0
        self._server: asyncio.Server | None = None

    def handlers(self) -> Mapping[str, Handler]:
        """Nothing is asked of it."""
        return {}

    async def start(self) -> None:
        """Serve."""
        listener = socket.socket(fileno=self._host.files[0])
        self._server = await asyncio.start_server(self._connection, sock=listener, limit=MAX_HEAD, backlog=16)

    async def stop(self) -> None:
        """Stop listening; what is being answered is answered."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def status(self) -> Mapping[str, Any]:
        """How many are being answered."""
        return {"connections": self._open}

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        transport = writer.transport
        transport.set_write_buffer_limits(high=0)  # to drain is then to have nothing left
        if self._open >= 2 * MAX_CONNECTIONS:  # as many again are told that there are too many
            transport.abort()
            return
        self._open += 1
        try:
            await self._answer(reader, writer, busy=self._open > MAX_CONNECTIONS)
        except (OSError, TimeoutError):
            transport.abort()  # `close` would wait for a client that takes nothing
        finally:
            self._open -= 1
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, busy: bool) -> None:
        try:
            answer = Answer(503) if busy else judge(await _head(reader))
        except TimeoutError:
            answer = Answer(408)
        except asyncio.LimitOverrunError:
            answer = Answer(431)
        except (asyncio.IncompleteReadError, ConnectionError):
            return  # the client went away
        writer.write(await self._encode(answer))
        await asyncio.wait_for(writer.drain(), SEND_SECONDS)
        writer.write_eof()
        # What was sent after the head is read away: closing over it would reset the connection (RFC 9112 9.6).
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(reader.read(MAX_HEAD), 1.0)

    async def _encode(self, answer: Answer) -> bytes:
        body = f"{answer.status} {_STATUS[answer.status]}\n".encode()
        kind = "text/plain; charset=utf-8"
        if answer.status == 200:
            try:
                body, kind = str(await self._host.ask("document", None, SEND_SECONDS)).encode(), CONTENT_TYPE
            except Exception:  # noqa: BLE001  # a sensor that fails must not end the server
                return await self._encode(Answer(500))
        allow = "Allow: GET, HEAD\r\n" if answer.status == 405 else ""
        head = (
            f"HTTP/1.1 {answer.status} {_STATUS[answer.status]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n{allow}Connection: close\r\n\r\n"
        )
        return head.encode() + (b"" if answer.head_only else body)


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Bytes up to and with the empty line."""
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
