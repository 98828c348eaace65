"""HTTP downloads that resume. Kept apart from `fetch`, because the library behind it is slow to import."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import requests
import urllib3

CHUNK = 1 << 18
CONNECT_SECONDS, READ_SECONDS = 10, 60
SLOW_SECONDS, SLOW_BYTES = 60, 60 << 10  # a place that gives less in that time is given up
MAX_BYTES = 4 << 30  # of a file whose size is not known beforehand

Report = Callable[[int, int | None], None]  # bytes so far, bytes in all if known


class RefusedError(Exception):
    """The place answered, and the answer is no: trying again will not change it."""


class UnreachableError(Exception):
    """No connection to the place."""


class BrokenError(Exception):
    """The transfer failed on the way; another attempt may go on where it ended."""


def resume(url: str, partial: Path, size: int | None, report: Report) -> None:
    """Bring the file `partial` to full length, going on where it ends (RFC 9110, section 14.2).

    size: bytes the file must have, if known; more than that is refused. Raises the errors above, and OSError when
    `partial` cannot be written.
    """
    have = partial.stat().st_size if partial.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=(CONNECT_SECONDS, READ_SECONDS)) as answer:
            if have == 0 or answer.status_code != 416:  # 416: nothing beyond what we have; the hash will decide
                _receive(answer, partial, have, size, report)
    except requests.ConnectionError as error:
        raise UnreachableError(_plain(error)) from error
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise BrokenError(_plain(error)) from error
    except ValueError as error:  # what these libraries raise for an address that is none, also for that of a redirect
        raise RefusedError(_plain(error)) from error


def _receive(answer: requests.Response, partial: Path, have: int, size: int | None, report: Report) -> None:
    if answer.status_code >= 500 or answer.status_code in (408, 429):
        raise BrokenError(f"HTTP status {answer.status_code}")
    if answer.status_code not in (200, 206):
        raise RefusedError(f"HTTP status {answer.status_code}")
    if answer.status_code == 206 and _range_start(answer) != have:
        partial.unlink(missing_ok=True)
        raise BrokenError("the answer does not go on where it was asked to")
    received = have if answer.status_code == 206 else 0
    length = answer.headers.get("Content-Length", "")
    total = int(length) + received if length.isdigit() else size
    limit = size or MAX_BYTES
    since, before = time.monotonic(), received
    with partial.open("ab" if received else "wb") as file:
        for chunk in _chunks(answer):
            received += len(chunk)
            if received > limit:
                partial.unlink()
                raise RefusedError(f"longer than the {limit} bytes it should have")
            file.write(chunk)
            report(received, total)
            if time.monotonic() - since > SLOW_SECONDS:
                if received - before < SLOW_BYTES:
                    raise RefusedError(f"too slow: {received - before} bytes in {SLOW_SECONDS} s")
                since, before = time.monotonic(), received
    if total is not None and received < total:
        raise BrokenError(f"ended after {received} of {total} bytes")


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    """The body as it is stored: servers call a .tar.gz gzip-encoded, and the hash is of the .tar.gz. Each piece is
    handed over as it comes."""
    while chunk := answer.raw.read1(CHUNK, decode_content=False):
        yield chunk


def _range_start(answer: requests.Response) -> int | None:
    """Where a partial answer begins (RFC 9110, section 14.4); None when it does not say."""
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def head(url: str) -> str:
    """'yes' if the place has the file, else what it answered."""
    try:
        status = requests.head(url, allow_redirects=True, timeout=CONNECT_SECONDS).status_code
        if status in (405, 501):  # this server answers questions for the file alone
            with requests.get(url, stream=True, timeout=CONNECT_SECONDS) as answer:
                status = answer.status_code
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        return type(error).__name__
    return "yes" if status == 200 else f"HTTP {status}"


def _plain(error: Exception) -> str:
    text = str(error)
    return text[:200] if text else type(error).__name__
