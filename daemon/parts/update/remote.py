"""A file on a web server, read by ranges, however often the way to it breaks.

What is read one after the other comes as one answer to one request that has no end: TCP holds the server back. The
first request at a new place asks for little more than was wanted, each further one for four times as much, so that of a
jump little is fetched in vain. After a failure the next request begins at the byte that is missing: nothing that
arrived is fetched again. That a file is still the same one is told by its ETag, date and size; what its bytes are
worth, their hashes tell whoever asks.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import SplitResult, quote

from daemon.parts.update.http import MAX_LENGTH, SKIP, Body, Client, Clock, Head, Remote, check_proxy, check_url, date
from daemon.parts.update.link import CHUNK, SourceError, basic

FIRST = 16 << 10  # bytes of the first request at a place
OPEN = 4 << 20  # more than this is asked for without an end
AGAIN = 4 << 20  # bytes that may be fetched again from a server without ranges, or so much of the file:
AGAIN_SHARE = 20  # a twentieth
_LEAST = 4 << 10  # bytes of a range that is shorter than what was asked
_FIXED = 60  # seconds after its last change at which a date tells a file from its next version (RFC 9110, 8.8.2.2)
_DAY = 86400.0
_BUSY = (408, 425, 429)
_TICK = 20.0  # seconds between two signs of life
_RANGE = re.compile(r"bytes ([0-9]{1,15})-([0-9]{1,15})/([0-9]{1,15})", re.ASCII)
_NO_RANGE = re.compile(r"bytes \*/([0-9]{1,15})", re.ASCII)
_HEADER = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,100}: [!-~](?:[ -~]{0,4000}[!-~])?", re.ASCII)
_OURS = frozenset(("host", "range", "if-range", "accept-encoding", "connection", "content-length", "transfer-encoding"))
LEAST_RATE = 4 << 10
_NAME = re.compile(r"(?!.*(?:^|/)\.)[0-9A-Za-z._~^-]+(?:/[0-9A-Za-z._~^-]+)*", re.ASCII)


class Version(NamedTuple):
    """What tells that a file is another one than before."""

    etag: str | None
    modified: str | None
    size: int | None

    def other(self, than: Version) -> bool:
        """Whether it is, as far as both say. A tag is the same one whether it is called weak or not (RFC 9110, section
        8.8.3.2): some caches say one, and some the other."""
        pairs = zip(self._replace(etag=_opaque(self.etag)), than._replace(etag=_opaque(than.etag)), strict=True)
        return any(a != b for a, b in pairs if a is not None and b is not None)

    def over(self, old: Version) -> Version:
        """What it does not say, the old one does."""
        size = old.size if self.size is None else self.size
        return Version(self.etag or old.etag, self.modified or old.modified, size)


class Source:
    """A file at a URL. Answers `read` as `common.bundle.ranges.Read`.

    alive: called at least every 20 s while something is waited for; told: of each failure, with the seconds until the
    next attempt.
    """

    def __init__(
        self,
        client: Client,
        url: SplitResult,
        clock: Clock,
        alive: Callable[[], None],
        told: Callable[[str, float], None],
    ) -> None:
        self.fetched = self.skipped = 0  # bytes that came; of them what nobody had asked for
        self._client, self._limits, self._clock = client, client.limits, clock
        self._alive, self._told = alive, told
        self._url = self._there = url  # where it really is, after redirects
        self._version = _UNKNOWN
        self._strong: str | None = None  # what If-Range may say
        self._whole = False  # the last answer was all of it: no ranges are known there, or a cache is still cold
        self._ranges = False  # whether any answer was a range
        self._reached = self._again = 0  # by whole answers; how much of that was fetched again
        # The answer under way: its body, where the next byte belongs, where the last one does if that is known.
        self._body: Body | None = None
        self._at = 0
        self._end: int | None = None
        self._ahead, self._done = FIRST, False
        self._failures = self._all = self._progress = 0
        self._not_before, self._signed = 0.0, clock.now()

    def read(self, offset: int, length: int) -> bytearray:
        """Exactly so many bytes, fewer only at the end. Raises SourceError, when asking again has not helped."""
        out = bytearray()
        self._failures = 0
        while len(out) < length:
            try:
                if self._clock.now() < self._not_before:
                    raise SourceError("the server wants to be left alone", "source-busy", passing=False, retryable=True)
                data = self._some(offset + len(out), length - len(out))
            except OSError as error:
                self._failed(_of(error))
            except SourceError as error:
                self._failed(error)
            else:
                if not data:
                    break
                out += data
                if self._progress >= self._limits.progress:
                    self._failures = 0
                self._sign()
        return out

    def close(self) -> None:
        """End what goes on."""
        self._drop()
        self._client.close()

    # -- failures ----------------------------------------------------------------------------------------------------

    def _failed(self, error: SourceError) -> None:
        """Wait until another attempt may be made; or raise it."""
        self._drop()
        moved, self._there = self._there != self._url, self._url
        if error.reason == "source-denied" and moved and self._failures == 0:
            error.passing = True  # such addresses have an end
        if not error.passing:
            raise error
        self._failures, self._all, self._progress = self._failures + 1, self._all + 1, 0
        if self._failures >= self._limits.attempts or self._all >= self._limits.total:
            raise SourceError(error.message, error.reason, passing=False, retryable=True)
        pause = min(self._limits.pause * 2.0 ** (self._failures - 1), self._limits.longest)
        pause = max(pause * (0.5 + self._clock.chance() / 2), error.after)
        if error.after > self._limits.after:
            self._not_before = self._clock.now() + error.after
            words = f"{error.message} for {error.after:.0f} s"
            raise SourceError(words, error.reason, passing=False, retryable=True)
        self._told(error.message, pause)
        while pause > 0:
            self._alive()
            self._clock.sleep(min(pause, _TICK))
            pause -= _TICK

    def _drop(self) -> None:
        """Nothing of the connection is used any more."""
        body, self._body = self._body, None
        if body is not None:
            body.drop()
        self._client.close()

    # -- answers -----------------------------------------------------------------------------------------------------

    def _some(self, offset: int, wanted: int) -> bytes:
        """At least one of those bytes; none at the end. Raises OSError, SourceError."""
        if self._body is not None and not self._forward(offset):
            self._leave()
        size = self._version.size
        if size is not None and offset >= size:
            return b""
        if self._body is None and not (self._request(offset, wanted) and self._forward(offset)):
            return b""
        return self._take(wanted)

    def _forward(self, offset: int) -> bool:
        """Read on to there, if the answer under way leads there, and that costs less than another one."""
        gap = offset - self._at
        if gap < 0 or (self._end is not None and offset >= self._end) or (gap > SKIP and not self._whole):
            return False
        while self._at < offset:
            data = self._take(min(CHUNK, offset - self._at))
            if not data:
                return False
            self.skipped += len(data)
            self._sign()
        return True

    def _take(self, most: int) -> bytes:
        """The next bytes of the answer under way; none at its end. Raises OSError, SourceError."""
        assert self._body is not None
        data = self._body.read(most if self._end is None else min(most, self._end - self._at))
        self.fetched += len(data)
        self._at += len(data)
        self._progress += len(data)
        if self._whole:
            self._reached = max(self._reached, self._at)
        if not data and self._end is not None:
            raise SourceError("the server's answer is shorter than it says", "source-answer")
        if not data:
            self._version = self._version._replace(size=self._at)
        if not data or self._at == self._end:
            self._done = True
            self._leave()
        return data

    def _leave(self) -> None:
        """Read no more of the answer under way; the connection may be used again if little is left of it."""
        body, self._body = self._body, None
        if body is not None:
            taken = body.taken
            with contextlib.suppress(OSError, SourceError):
                body.close()
            self.fetched += body.taken - taken
            self.skipped += body.taken - taken

    # -- requests ----------------------------------------------------------------------------------------------------

    def _request(self, offset: int, wanted: int) -> bool:
        """Ask for what begins there; whether there is something. Raises OSError, SourceError."""
        if not 0 <= offset - self._at <= SKIP:
            self._ahead = FIRST
        elif self._done:
            self._ahead = min(self._ahead * 4, OPEN * 4)
        self._done = False
        end = None if self._ahead > OPEN else offset + max(wanted, self._ahead)
        fields = {"Range": f"bytes={offset}-{'' if end is None else end - 1}"}
        if self._strong is not None:
            fields["If-Range"] = self._strong
        head, body, self._there = self._client.open(self._there, fields)
        try:
            return self._answered(head, body, offset, end)
        finally:
            if self._body is not body:
                with contextlib.suppress(OSError, SourceError):
                    body.close()

    def _answered(self, head: Head, body: Body, offset: int, end: int | None) -> bool:
        begin, size = 0, body.size
        if head.status == 206:
            begin, self._end, size = _range(head, body, offset, end)
        elif head.status == 200:
            self._end = size
        elif head.status == 416 and (none := _NO_RANGE.fullmatch(head.fields.get("content-range", ""))):
            size = int(none[1])
            if size > offset:
                raise SourceError("the server has not the range that it should have", "source-answer")
        else:
            raise _refusal(head)
        self._same(Version(head.fields.get("etag"), head.fields.get("last-modified"), size), head)
        if head.status == 416 or size == 0:
            return False
        self._whole = head.status == 200
        if self._whole:
            self._afford(offset)
        self._ranges = self._ranges or not self._whole
        self._at, self._body = begin, body
        return True

    def _same(self, version: Version, head: Head) -> None:
        if version.other(self._version):
            self._version, self._strong, self._whole = _UNKNOWN, None, False
            self._reached = self._again = self._at = 0
            raise SourceError("the file has changed on the server", "source-changed", passing=False, retryable=True)
        self._version = version.over(self._version)
        if version.etag is not None:
            self._strong = version.etag if version.etag.startswith('"') else None
        else:
            modified, now = date(version.modified), date(head.fields.get("date"))
            fixed = modified is not None and now is not None and now - modified >= _FIXED
            self._strong = version.modified if fixed else self._strong

    def _afford(self, offset: int) -> None:
        """Whether to begin again with the first byte. Raises SourceError `source-no-ranges`."""
        again = min(self._reached, offset)
        if self._again + again > max(AGAIN, (self._version.size or 0) // AGAIN_SHARE):
            words = "the server gives no ranges of the file, and what came of it would be fetched again"
            raise SourceError(words, "source-no-ranges", passing=self._ranges)
        self._again += again

    def _sign(self) -> None:
        if self._clock.now() - self._signed >= _TICK:
            self._signed = self._clock.now()
            self._alive()


_UNKNOWN = Version(None, None, None)


def _opaque(etag: str | None) -> str | None:
    return None if etag is None else etag.removeprefix("W/")


def _range(head: Head, body: Body, offset: int, end: int | None) -> tuple[int, int, int]:
    """First byte, end and size of the file, when they are what was asked for. Raises SourceError `source-answer`."""
    match = _RANGE.fullmatch(head.fields.get("content-range", ""))
    if match is not None:
        first, after, size = int(match[1]), int(match[2]) + 1, int(match[3])
        most = size if end is None else min(end, size)
        enough = after == most or after - first >= _LEAST
        if first == offset < after <= most <= MAX_LENGTH and enough and body.size in (None, after - first):
            return first, after, size
    raise SourceError("the server sends another range than it was asked for", "source-answer")


def _refusal(head: Head) -> SourceError:
    status = head.status
    if status in (404, 410):
        return SourceError("the server does not have the file", "source-missing", passing=False)
    if status in (401, 403):
        return SourceError("the server does not give the file to us", "source-denied", passing=False)
    if status == 407:
        words = "the proxy does not accept user and password"
        return SourceError(words, "source-proxy", passing=False)
    if status in _BUSY or status >= 500:
        return SourceError(f"the server answers {status}", "source-busy", after=_after(head))
    return SourceError(f"the server answers {status}", "source-answer", passing=False)


def _after(head: Head) -> float:
    """Retry-After in seconds, at most a day; a date counts from the server's own."""
    text = head.fields.get("retry-after", "")
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        return min(float(text), _DAY)
    then, now = date(text), date(head.fields.get("date"))
    return 0.0 if then is None or now is None else min(max(0.0, float(then - now)), _DAY)


def _of(error: OSError) -> SourceError:
    if isinstance(error, TimeoutError):
        return SourceError("the server is silent", "source-slow")
    return SourceError(f"the connection broke: {error.strerror or type(error).__name__}", "source-unreachable")


class Folder:
    """Small files below a URL, each read whole. Answers `get` as `common.bundle.ranges.Get`."""

    def __init__(self, source: Callable[[SplitResult], Source], base: SplitResult) -> None:
        """source: makes one for a URL; base: its path ends with a slash, or gets one."""
        path = base.path if base.path.endswith("/") else base.path + "/"
        self._source, self._base = source, base._replace(path=path)

    def get(self, name: str, most: int) -> bytearray:
        """Raises SourceError: as `Source.read`, `source-name`, `source-too-big`."""
        if not _NAME.fullmatch(name) or len(name) > 255:
            raise SourceError(f"{name!r:.80} is no name of a file", "source-name", passing=False)
        source = self._source(self._base._replace(path=self._base.path + quote(name)))
        data = source.read(0, most + 1)
        if len(data) > most:
            source.close()
            words = f"{name} is larger than {most} bytes"
            raise SourceError(words, "source-too-big", passing=False)
        return data


def parse(text: str) -> Remote:
    """What is to be fetched, as it is told to the program: a JSON object with `url`, and perhaps `headers` (object of
    texts), `ca` (PEM), `proxy` (URL), `rate` (bytes per second). Raises SourceError `source-order`."""
    try:
        found = json.loads(text)
        if not isinstance(found, dict) or set(found) - {"url", "headers", "ca", "proxy", "rate"}:
            raise ValueError("an object of other members")
        headers, rate, proxy = found.get("headers") or {}, found.get("rate"), found.get("proxy")
        for name, value in headers.items():
            if not _HEADER.fullmatch(f"{name}: {value}") or name.lower() in _OURS:
                raise ValueError("a header that cannot be")
        if rate is not None and (type(rate) is not int or not rate >= LEAST_RATE):
            raise ValueError("a rate that is too low")
        if not isinstance(found.get("ca") or "", str):
            raise ValueError("certificates that are no text")
        url = check_url(found["url"])
        if word := basic(url.username, url.password):
            headers, url = {**headers, "Authorization": word}, url._replace(netloc=url.netloc.rpartition("@")[2])
        return Remote(url, headers, found.get("ca") or None, proxy and check_proxy(proxy), rate)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        words = "what is to be fetched is not told as it must be"
        raise SourceError(words, "source-order", passing=False) from error
