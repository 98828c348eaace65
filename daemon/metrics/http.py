"""A very small HTTP/1.1 server for one document (RFC 9110, RFC 9112): GET and HEAD of /metrics, a request a connection.

Everything is bounded: the head in bytes and seconds, the answer in seconds, the connections in number. A body is
neither expected nor read.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable
from typing import NamedTuple

PATH = "/metrics"
MAX_HEAD = 8 << 10  # bytes
HEAD_SECONDS = 5.0
SEND_SECONDS = 10.0
MAX_CONNECTIONS = 8

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


class Endpoint:
    """The server. document: makes the body; content_type: what it is."""

    def __init__(self, document: Callable[[], str], content_type: str) -> None:
        self.document = document
        self.content_type = content_type
        self._open = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(self._connection, host, port, limit=MAX_HEAD, backlog=16)

    async def stop(self) -> None:
        """Stop listening; what is being answered is answered."""
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open += 1
        answer: Answer | None
        try:
            answer = Answer(503) if self._open > MAX_CONNECTIONS else judge(await _head(reader))
        except TimeoutError:
            answer = Answer(408)
        except asyncio.LimitOverrunError:
            answer = Answer(431)
        except (asyncio.IncompleteReadError, ConnectionError):
            answer = None  # the client went away
        try:
            if answer is not None:
                writer.write(self._encode(answer))
                writer.write_eof()
                await asyncio.wait_for(writer.drain(), SEND_SECONDS)
                # What was sent after the head is read away: closing over it would reset the connection (RFC 9112 9.6).
                with contextlib.suppress(asyncio.LimitOverrunError):
                    await asyncio.wait_for(reader.read(MAX_HEAD), 1.0)
        except (OSError, TimeoutError):
            pass
        finally:
            self._open -= 1
            writer.close()

    def _encode(self, answer: Answer) -> bytes:
        body = f"{answer.status} {_STATUS[answer.status]}\n".encode()
        kind = "text/plain; charset=utf-8"
        if answer.status == 200:
            try:
                body, kind = self.document().encode(), self.content_type
            except Exception:  # noqa: BLE001  # a sensor that fails must not end the server
                return self._encode(Answer(500))
        allow = "Allow: GET, HEAD\r\n" if answer.status == 405 else ""
        head = (
            f"HTTP/1.1 {answer.status} {_STATUS[answer.status]}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(body)}\r\n{allow}Connection: close\r\n\r\n"
        )
        return head.encode() + (b"" if answer.head_only else body)


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Bytes up to and with the empty line."""
    return await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), HEAD_SECONDS)
