"""`mixos-fetch ranges TO`, `mixos-fetch files TO`: fetches a bundle, or small files, for who judges and installs them.

It has the network and nothing else. TO is the number of a descriptor that says what is to be fetched
(`daemon.parts.update.remote.parse`): that may hold a password. Standard input is a socket with the end that asks:
`common.bundle.ranges.Ranges` for the file at a URL, `Files` for those in the folder at a URL. It says JSON, a line
each: `{"host": …}` when it is ready, `{"failed": …, "again": …}` for each failure that passes, with the seconds until
the next attempt; in the end status 0, or `{"error": …}` and its exit code. What is fetched is judged by whoever asked:
this process is taken to be the servers'.
"""

from __future__ import annotations

import json
import os
import pwd
import resource
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

from common.bundle.ranges import answer, answer_files, wait
from common.errors import MixosError, UsageError
from common.streams import open_missing
from daemon.linux.become import become, keep_only, stay_alone
from daemon.parts.update.http import Client, Clock
from daemon.parts.update.link import Limits
from daemon.parts.update.remote import Folder, Source, parse

ACCOUNT = "update"
USAGE = "usage: mixos-fetch ranges TO | files TO"
_MAX_TOLD = 1 << 20
_MEMORY = 256 << 20  # bytes of address space


def main(argv: Sequence[str]) -> int:
    """See the module; returns the exit code."""
    open_missing()
    try:
        match argv:
            case ["ranges" | "files" as kind, number] if number.isdigit():
                told = _told(int(number))
                _confine()
                _serve(kind, told)
            case _:
                raise UsageError(USAGE, reason="usage")
    except (BrokenPipeError, ConnectionResetError):  # who asked has gone
        return 0
    except OSError as error:
        return _failed(MixosError(f"{error.filename or 'the fetch'}: {error.strerror}", reason="fetch-io"))
    except MixosError as error:
        return _failed(error)
    return 0


def _serve(kind: str, told: str) -> None:
    remote, clock = parse(told), Clock()
    client = Client(remote, Limits(), clock)
    source = partial(Source, client, clock=clock, alive=partial(wait, 0), told=_again)
    _say(host=remote.url.hostname)
    if kind == "ranges":
        answer(0, 0, source(remote.url).read)
    else:
        answer_files(0, 0, Folder(source, remote.url).get)


def _told(descriptor: int) -> str:
    with os.fdopen(descriptor, "rb") as stream:
        return stream.read(_MAX_TOLD).decode("utf-8", "replace")


def _confine() -> None:
    """Raises MixosError, OSError."""
    parent = os.getppid()
    keep_only(())
    stay_alone()
    for limit, most in ((resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, _MEMORY)):
        resource.setrlimit(limit, (most, most))
    if os.geteuid() == 0:
        try:
            entry = pwd.getpwnam(ACCOUNT)
        except KeyError as error:
            raise MixosError(f"there is no account {ACCOUNT}", reason="account-missing") from error
        become((entry.pw_uid, entry.pw_gid), None, parent)


def _again(message: str, seconds: float) -> None:
    _say(failed=message, again=round(seconds, 1))


def _say(**values: Any) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def _failed(error: MixosError) -> int:
    _say(error=error.as_json())
    return error.exit_code
