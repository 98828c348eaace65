"""A web server that does what it is told to, right or wrong, and remembers what it did.

It serves one file at each path, with ranges, validators and persistent connections; before each request a test may put
a fault into its `faults`, which that request then meets. What really happened is in `happened`.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

MODIFIED = 1_700_000_000


@dataclass
class Answer:
    """What is about to be sent: fields by name, a body, and what becomes of it."""

    status: int = 200
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    begin: int = 0  # of the body in the file
    cut: int | None = None  # bytes of the body that are sent; then the connection ends
    reset: bool = False  # that end is one of RST
    trickle: float = 0.0  # seconds before each byte of the body
    raw: bytes | None = None  # sent in place of all; then the connection ends
    before: bytes = b""  # of the answer
    chunked: bool = False


Fault = Callable[["Web", Answer], None]


@dataclass
class Asked:
    """A request. sent: bytes of the answer's body that the socket took."""

    target: str
    fields: dict[str, str]
    status: int = 0
    sent: int = 0


class Web:
    """files: path → content; ranges, etag, dated: whether and how it says so."""

    def __init__(self, files: dict[str, bytes], tls: ssl.SSLContext | None = None, **settings: Any) -> None:
        self.files, self.tls = files, tls
        self.ranges: bool = settings.get("ranges", True)
        self.etag: str | None = settings.get("etag", '"one"')
        self.dated: bool = settings.get("dated", True)
        self.persistent: bool = settings.get("persistent", True)
        self.buffer: int | None = settings.get("buffer")  # bytes that may be under way
        self.faults: list[Fault | None] = []
        self.happened: list[str] = []
        self.asked: list[Asked] = []
        self.connections = 0
        self._ended = threading.Event()
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []

    @contextlib.contextmanager
    def serving(self) -> Iterator[str]:
        """Its URL, without a path."""
        with socket.socket() as listener:
            if self.buffer:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.buffer)
            listener.bind(("127.0.0.1", 0))
            listener.listen(20)
            self._start(self._accept, listener)
            try:
                yield f"{'https' if self.tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
            finally:
                self._ended.set()
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RDWR)
                for one in self._open:
                    with contextlib.suppress(OSError):
                        one.shutdown(socket.SHUT_RDWR)
                for thread in self._threads:
                    thread.join(20)

    @property
    def sent(self) -> int:
        """Bytes of bodies."""
        return sum(one.sent for one in self.asked)

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._ended.is_set():
            try:
                link, _ = listener.accept()
            except OSError:
                return
            self._open.append(link)
            self.connections += 1
            self._start(self._serve, link)

    def _serve(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError, IndexError), link:
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.tls:
                link.settimeout(20)
                link = self.tls.wrap_socket(link, server_side=True)
                self._open.append(link)
                link.settimeout(None)
            with link, link.makefile("rb") as stream:
                while self._one(link, stream):
                    pass

    def _one(self, link: socket.socket, stream: Any) -> bool:
        head = []
        while (line := stream.readline(4000)) not in (b"", b"\r\n"):
            head.append(line.decode("latin-1").rstrip("\r\n"))
        if not head:
            return False
        fields = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in head[1:])}
        asked = Asked(head[0].split()[1], fields)
        self.asked.append(asked)
        answer = self._answer(asked)
        fault = self.faults.pop(0) if self.faults else None
        if fault is not None:
            self.happened.append(fault.__name__)
            fault(self, answer)
        asked.status = answer.status
        return self._send(link, answer, asked)

    def _answer(self, asked: Asked) -> Answer:
        target = re.sub(r"^http://[^/]*", "", asked.target).partition("?")[0]
        content = self.files.get(target)
        if content is None:
            return Answer(404, body=b"not here\n")
        answer = Answer(body=content, fields={"Date": formatdate(MODIFIED + 1000, usegmt=True)})
        if self.etag:
            answer.fields["ETag"] = self.etag
        if self.dated:
            answer.fields["Last-Modified"] = formatdate(MODIFIED, usegmt=True)
        match = re.fullmatch(r"bytes=([0-9]+)-([0-9]*)", asked.fields.get("range", ""))
        condition = asked.fields.get("if-range")
        if match and self.ranges and condition in (None, self.etag, answer.fields.get("Last-Modified")):
            begin, end = int(match[1]), min(int(match[2] or len(content)) + 1, len(content))
            if begin >= len(content):
                return Answer(416, {**answer.fields, "Content-Range": f"bytes */{len(content)}"})
            answer.status, answer.begin, answer.body = 206, begin, content[begin:end]
            answer.fields["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
        return answer

    def _send(self, link: socket.socket, answer: Answer, asked: Asked) -> bool:
        if answer.raw is not None:
            link.sendall(answer.raw)
            return False
        if answer.chunked:
            answer.fields["Transfer-Encoding"] = "chunked"
        else:
            answer.fields.setdefault("Content-Length", str(len(answer.body)))
        if not self.persistent:
            answer.fields["Connection"] = "close"
        lines = [f"HTTP/1.1 {answer.status} words", *(f"{name}: {value}" for name, value in answer.fields.items())]
        link.sendall(answer.before + "\r\n".join([*lines, "", ""]).encode("latin-1"))
        cut = len(answer.body) if answer.cut is None else answer.cut
        body = memoryview(answer.body)[:cut]
        step = 1 if answer.trickle else 8 << 10
        for at in range(0, len(body), step):
            if answer.trickle and self._ended.wait(answer.trickle):
                return False
            piece = bytes(body[at : at + step])
            link.sendall(b"%x\r\n%s\r\n" % (len(piece), piece) if answer.chunked else piece)
            asked.sent += len(piece)
        if answer.cut is not None:
            if answer.reset:
                link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return False
        if answer.chunked:
            link.sendall(b"0\r\n\r\n")
        return self.persistent


# -- faults ------------------------------------------------------------------------------------------------------------


def faults(chance: random.Random) -> dict[str, Fault]:
    """Those that another attempt overcomes, by name, with what chance decides in them."""
    share = chance.random()
    noise = chance.randbytes(chance.choice((1, 40, 3000, 70_000)))

    def refused(_web: Web, answer: Answer) -> None:
        answer.raw = b""

    def dropped(_web: Web, answer: Answer) -> None:
        answer.cut, answer.reset = int(len(answer.body) * share), True

    def truncated(_web: Web, answer: Answer) -> None:
        answer.cut = int(len(answer.body) * share)

    def cut_in_chunks(_web: Web, answer: Answer) -> None:
        answer.cut, answer.chunked = int(len(answer.body) * share), True

    def short_in_chunks(_web: Web, answer: Answer) -> None:
        if answer.status == 206:
            answer.body, answer.chunked = answer.body[: int(len(answer.body) * share)], True
        else:
            answer.raw = b""

    def other_range(_web: Web, answer: Answer) -> None:
        begin = answer.begin + chance.choice((1, 5, 4096))
        answer.status = 206
        answer.fields["Content-Range"] = f"bytes {begin}-{begin + len(answer.body) - 1}/{1 << 40}"

    def other_length(_web: Web, answer: Answer) -> None:
        answer.status = 206
        answer.fields["Content-Length"] = str(len(answer.body) + chance.choice((-1, 1, 1 << 50, -len(answer.body))))

    def no_range(_web: Web, answer: Answer) -> None:
        answer.status, answer.fields["Content-Type"] = 206, "multipart/byteranges; boundary=x"
        answer.fields.pop("Content-Range", None)

    def crumb(_web: Web, answer: Answer) -> None:
        answer.status, answer.body = 206, answer.body[:1]
        answer.fields["Content-Range"] = f"bytes {answer.begin}-{answer.begin}/{1 << 40}"

    def slow(_web: Web, answer: Answer) -> None:
        answer.trickle = 0.005

    def silent(web: Web, answer: Answer) -> None:
        web._ended.wait(chance.choice((0.45, 0.8)))
        answer.raw = b""

    def silent_in_body(_web: Web, answer: Answer) -> None:
        answer.trickle = 5.0

    def busy(_web: Web, answer: Answer) -> None:
        answer.status, answer.body = chance.choice((429, 408, 500, 502, 503, 504)), b"busy" * 100
        answer.fields = {} if share < 0.5 else {"Retry-After": chance.choice(("3", "0", "nonsense"))}

    def garbage(_web: Web, answer: Answer) -> None:
        answer.raw = noise

    def endless_head(_web: Web, answer: Answer) -> None:
        answer.raw = b"HTTP/1.1 206 x\r\n" + b"X: y\r\n" * 20_000

    def endless_interim(_web: Web, answer: Answer) -> None:
        answer.before = b"HTTP/1.1 103 x\r\n\r\n" * 50

    def two_lengths(_web: Web, answer: Answer) -> None:
        answer.before = b"HTTP/1.1 206 x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nwrong\r\n"

    def folded(_web: Web, answer: Answer) -> None:
        answer.fields["X"] = "a\r\n b"

    def no_length(_web: Web, answer: Answer) -> None:
        answer.raw = b"HTTP/1.0 200 x\r\n\r\nwrong"

    def tail(_web: Web, answer: Answer) -> None:
        """More than the length: it is no answer to the next request."""
        answer.fields["Content-Length"] = str(len(answer.body))
        answer.body += b"HTTP/1.1 206 x\r\nContent-Range: bytes 0-4/5\r\nContent-Length: 5\r\n\r\nwrong"

    found = locals()
    return {name: one for name, one in found.items() if callable(one) and name != "chance"}


def changed(web: Web, answer: Answer) -> None:
    """From this request on the file is another one, of the same size."""
    web.etag = '"two"'
    web.files = {path: bytes(256 - 1 - byte for byte in content) for path, content in web.files.items()}
    answer.status, answer.body, answer.fields["ETag"] = 200, next(iter(web.files.values())), web.etag
    answer.fields.pop("Content-Range", None)


def without_ranges(web: Web, answer: Answer) -> None:
    """From this request on the server knows none."""
    web.ranges = False
    answer.status, answer.begin, answer.body = 200, 0, next(iter(web.files.values()))
    answer.fields.pop("Content-Range", None)
