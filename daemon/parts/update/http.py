"""Requests to a web server and its answers, read strictly and within limits (RFC 9110 and 9112).

Not `http.client`: with what it imports it takes 1.4 MiB more, and it has no limit for a whole head, for the number of
interim answers, or for the time of anything but one system call.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import SplitResult, urljoin, urlsplit

from daemon.parts.update.link import END, MAX_HEAD, PORTS, Connection, Layer, Limits, SourceError, basic, connect

if TYPE_CHECKING:
    import ssl

MAX_FIELDS = 100
MAX_URL = 4000
MAX_REDIRECTS = 5
MAX_LENGTH = 1 << 50
SKIP = 32 << 10  # bytes of an answer that are read in vain rather than a connection made anew
_MAX_INTERIM = 4
_MAX_LINE = 256  # of a chunk's size
_REDIRECTS = (301, 302, 303, 307, 308)
# In what a server or a proxy may send a file though that was refused. Any other word was stored with the file: of an
# upload some stores keep `aws-chunked`, or what is left without it, nothing.
_ENCODED = frozenset(("gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress"))

_STATUS = re.compile(r"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [\t -~\x80-\xff]*)?")
_FIELD = re.compile(
    r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[!-~\x80-\xff](?:[ \t!-~\x80-\xff]*[!-~\x80-\xff])?)?)[ \t]*"
)
_CHUNK = re.compile(rb"([0-9A-Fa-f]{1,12})[ \t]*(?:;[\t -~\x80-\xff]*)?\r\n")
_DATE = re.compile(r"[A-Z][a-z]{2}, ([0-9]{2}) ([A-Z][a-z]{2}) ([0-9]{4}) ([0-9]{2}):([0-9]{2}):([0-9]{2}) GMT")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_URL = re.compile(r"https?://[!-~]+", re.IGNORECASE)
_HOST = re.compile(r"(?=.{1,253}$)(?:(?:[0-9a-z_-]{1,63}\.)*[0-9a-z_-]{1,63}\.?|[0-9a-f:.]*:[0-9a-f:.]*)", re.ASCII)


class Head(NamedTuple):
    """The head of an answer. persistent: the connection may be used again; fields: names in lower case, equal names
    joined by a comma."""

    status: int
    persistent: bool
    fields: Mapping[str, str]

    def has(self, name: str, word: str) -> bool:
        """Whether a word is in a list."""
        return word in self.words(name)

    def words(self, name: str) -> set[str]:
        """Those of a list, in lower case."""
        return {one.strip().lower() for one in self.fields.get(name, "").split(",")}


def parse_head(data: bytes) -> Head:
    """An answer from its first byte to the end of its empty line. Raises SourceError `source-answer`."""
    first, *lines = data.removesuffix(END).decode("latin-1").split("\r\n")
    status = _STATUS.fullmatch(first)
    if status is None or len(lines) > MAX_FIELDS or not data.endswith(END):
        raise SourceError("the server's answer is not one of HTTP/1.1", "source-answer")
    fields: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if match is None:
            raise SourceError("a field of the server's answer is malformed", "source-answer")
        name, value = match[1].lower(), match[2]
        fields[name] = f"{fields[name]}, {value}" if name in fields else value
    head = Head(int(status[2]), status[1] == "1", fields)
    return head._replace(persistent=head.persistent and not head.has("connection", "close"))


def number(text: str, what: str) -> int:
    """Raises SourceError `source-answer`."""
    if not re.fullmatch(r"[0-9]{1,15}", text, re.ASCII) or int(text) > MAX_LENGTH:
        raise SourceError(f"{what} of the server's answer is not a number that can be", "source-answer")
    return int(text)


def date(text: str | None) -> int | None:
    """Seconds since 1970 (RFC 9110 section 5.6.7, the form that is written); None: another form, or none."""
    match = _DATE.fullmatch(text or "")
    if match is None or match[2] not in _MONTHS:
        return None
    day, year, hour, minute, second = (int(match[at]) for at in (1, 3, 4, 5, 6))
    month = _MONTHS.index(match[2]) + 1
    year, month = (year - 1, month + 12) if month < 3 else (year, month)
    days = 365 * year + year // 4 - year // 100 + year // 400 + (153 * month - 457) // 5 + day - 306
    return (days - 719163) * 86400 + hour * 3600 + minute * 60 + second


def check_url(text: str, base: str | None = None) -> SplitResult:
    """A URL of a web server, whole or relative to another one. Raises ValueError."""
    whole = urljoin(base, text) if base else text
    if len(whole) > MAX_URL or not _URL.fullmatch(whole):
        raise ValueError("a URL begins with http:// or https:// and has no blanks")
    url = urlsplit(whole)
    if not url.hostname or url.port == 0 or not _HOST.fullmatch(url.hostname):
        raise ValueError("a URL names a host")
    return url._replace(fragment="")


def check_proxy(text: str) -> SplitResult:
    """The URL of a proxy, with its account. Raises ValueError."""
    url = urlsplit(text)
    if url.scheme not in PORTS or url.path not in ("", "/") or url.query or len(text) > MAX_URL:
        raise ValueError("a proxy is http://, https://, socks5:// or socks5h:// and a host")
    check_url(url._replace(scheme="http").geturl())
    return url


class Clock(NamedTuple):
    """Time as the code sees it that waits on purpose, and chance (0 to 1); what waits for a socket has the system's."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = lambda seconds: time.sleep(max(0.0, seconds))
    chance: Callable[[], float] = lambda: int.from_bytes(os.urandom(4)) / (1 << 32)


class Pace:
    """How fast bytes come, and may come."""

    def __init__(self, limits: Limits, rate: int | None, clock: Clock) -> None:
        """rate: bytes per second that may be taken; None: any."""
        self._limits, self._rate, self._clock = limits, rate, clock
        self._waited, self._got, self._due = 0.0, 0, 0.0

    def took(self, size: int, seconds: float) -> None:
        """So many bytes came after waiting so long. Raises SourceError `source-slow`."""
        self._waited, self._got = self._waited + seconds, self._got + size
        if self._waited >= self._limits.slow:
            slow = self._got < self._waited * self._limits.least
            self._waited, self._got = 0.0, 0
            if slow:
                raise SourceError("the server gives too few bytes per second", "source-slow")
        if self._rate:
            self._due = max(self._due, self._clock.now()) + size / self._rate
            self._clock.sleep(self._due - self._clock.now())

    def most(self, wanted: int) -> int:
        """How many may be taken at once."""
        return min(wanted, max(self._rate // 4, 1)) if self._rate else wanted


class Body:
    """What follows a head, to be read from its begin. size: in bytes; None: in chunks, known at the end."""

    def __init__(self, client: Client, link: Connection, head: Head) -> None:
        """Raises SourceError `source-answer` when its end is not clear, `source-encoded`."""
        self._client, self._link, self._persistent = client, link, head.persistent
        self.taken = 0
        wanted = head.status in (200, 206)
        coding, length = head.fields.get("transfer-encoding"), head.fields.get("content-length")
        if wanted and not _ENCODED.isdisjoint(head.words("content-encoding")):
            raise SourceError("the server sends the file encoded, which was refused", "source-encoded", passing=False)
        if coding is None and length is not None:
            self.size: int | None = number(length, "the length")
        elif coding is not None and coding.lower() == "chunked" and length is None:
            self.size = None
        elif wanted:
            raise SourceError("the end of the server's answer is not clear", "source-answer")
        else:
            self.size, self._persistent = 0, False
        self._left = self.size or 0  # of the body, or of its chunk
        self._ended = self.size == 0
        if self._ended:
            self._finish()

    def read(self, most: int) -> bytes:
        """At least one byte, at most so many; none at the end. Raises OSError, SourceError."""
        limits, begin = self._client.limits, time.monotonic()
        until = begin + limits.silence
        if not self._ended and not self._left:
            self._chunk(until)
        if self._ended:
            return b""
        data = self._link.some(self._client.pace.most(min(most, self._left)), until)
        if not data:
            raise SourceError("the server's answer ended before its end", "source-unreachable")
        self._left -= len(data)
        self.taken += len(data)
        if self.size is not None and not self._left:
            self._finish()
        elif self.size is None and not self._left and self._link.exactly(2, until) != b"\r\n":
            raise SourceError("a chunk of the server's answer has no end", "source-answer")
        self._client.pace.took(len(data), time.monotonic() - begin)
        return data

    def _chunk(self, until: float) -> None:
        match = _CHUNK.fullmatch(self._link.through(b"\r\n", _MAX_LINE, until))
        if match is None:
            raise SourceError("a chunk of the server's answer is malformed", "source-answer")
        self._left = int(match[1], 16)
        if not self._left:
            for _ in range(MAX_FIELDS):
                if self._link.through(b"\r\n", MAX_HEAD, until) == b"\r\n":
                    break
            else:
                raise SourceError("the server's answer does not end", "source-answer")
            self._finish()

    def _finish(self) -> None:
        self._ended = True
        if self._persistent:
            self._client.keep(self._link)
        else:
            self._link.close()

    def drop(self) -> None:
        """End the connection, if it is still in use for this."""
        if not self._ended:
            self._ended = True
            self._link.close()

    def close(self) -> None:
        """Read no more of it. Raises OSError, SourceError when little is left, and that cannot be read."""
        try:
            if self.size is not None and self._persistent and self._left <= SKIP:
                while self.read(SKIP):
                    pass
        finally:
            self.drop()


class Remote(NamedTuple):
    """Where something is fetched from. url: without an account; headers: for its server alone; authorities:
    certificates (PEM), None: the system's; proxy: URL with its account; rate: bytes per second, None: any."""

    url: SplitResult
    headers: Mapping[str, str] = MappingProxyType({})
    authorities: str | None = None
    proxy: SplitResult | None = None
    rate: int | None = None


class Client:
    """Makes requests, one at a time, over one connection that is kept while the server keeps it."""

    def __init__(self, remote: Remote, limits: Limits, clock: Clock) -> None:
        self.remote, self.limits = remote, limits
        self.pace = Pace(limits, remote.rate, clock)
        self.requests = 0  # that were made
        self._link: Connection | None = None  # one that nobody uses
        self._to = ""
        self._tls: ssl.SSLContext | None = None

    def open(self, url: SplitResult, fields: Mapping[str, str]) -> tuple[Head, Body, SplitResult]:
        """GET a URL, with some fields, and follow redirects: the answer, and whose it is.

        Raises OSError; SourceError `source-redirect`, `source-answer`, `source-encoded`, and those of `connect`.
        """
        for _ in range(MAX_REDIRECTS + 1):
            head, body = self._exchange(url, fields)
            if head.status not in _REDIRECTS:
                return head, body, url
            body.close()
            url = _redirected(url, head)
        raise SourceError(f"the server redirects more than {MAX_REDIRECTS} times", "source-redirect", passing=False)

    def keep(self, link: Connection) -> None:
        """An answer was read to its end."""
        self._link = link

    def close(self) -> None:
        """The kept connection, if any."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def _exchange(self, url: SplitResult, fields: Mapping[str, str]) -> tuple[Head, Body]:
        request, to = self._request(url, fields), f"{url.scheme}://{url.netloc}"
        link, self._link = self._link, None
        if link is not None and link.idle() and self._to == to:
            try:
                return self._ask(link, request)
            except ConnectionError:  # the server has ended it at that moment
                link.close()
        elif link is not None:
            link.close()
        link, self._to = connect(url, self.remote.proxy, self._wrap, self.limits), to
        return self._ask(link, request)

    def _ask(self, link: Connection, request: bytes) -> tuple[Head, Body]:
        self.requests += 1
        begin = time.monotonic()
        until = begin + self.limits.answer
        try:
            link.send(request, until)
            for _ in range(_MAX_INTERIM):
                head = parse_head(link.through(END, MAX_HEAD, until))
                if head.status >= 200:
                    self.pace.took(0, max(0.0, time.monotonic() - begin - self.limits.trip))
                    return head, Body(self, link, head)
        except BaseException:
            link.close()
            raise
        link.close()
        raise SourceError("the server's answer does not come to its end", "source-answer")

    def _request(self, url: SplitResult, fields: Mapping[str, str]) -> bytes:
        all_fields = {"Host": url.netloc, "User-Agent": "mixos", "Accept-Encoding": "identity", **fields}
        target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        if (url.scheme, url.netloc) == (self.remote.url.scheme, self.remote.url.netloc):
            all_fields |= self.remote.headers
        proxy = self.remote.proxy
        if proxy is not None and url.scheme == "http" and proxy.scheme in ("http", "https"):
            target = f"http://{url.netloc}{target}"
            if word := basic(proxy.username, proxy.password):
                all_fields["Proxy-Authorization"] = word
        lines = [f"GET {target} HTTP/1.1", *(f"{name}: {value}" for name, value in all_fields.items()), "", ""]
        return "\r\n".join(lines).encode("latin-1")

    def _wrap(self, layer: Layer, name: str, until: float) -> Layer:
        from daemon.parts.update import tls

        self._tls = self._tls or tls.context(self.remote.authorities)
        return tls.Tls(layer, self._tls, name, until)


def _redirected(url: SplitResult, head: Head) -> SplitResult:
    try:
        there = check_url(head.fields.get("location", ""), url.geturl())
        if "@" in there.netloc:
            raise ValueError("an account in a URL")
    except ValueError as error:
        raise SourceError(
            "the server redirects to what is no URL of a web server", "source-redirect", passing=False
        ) from error
    if url.scheme == "https" and there.scheme != "https":
        raise SourceError("the server redirects from https to http", "source-redirect", passing=False)
    return there
