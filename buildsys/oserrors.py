"""What the operating system refuses, as an error of ours: a full disk is called one wherever it happens."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from common.errors import HostError, MixosError, StoreError

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
MAKE_ROOM = "free some space, or run 'mixos cache gc', then this again: what is finished is kept"


def host_error(
    error: OSError,
    doing: str,
    kind: type[MixosError] = HostError,
    reason: str = "host-io",
    hint: str | None = None,
) -> MixosError:
    """The error to raise for `error`, met while `doing` something; a full disk has its own reason and hint."""
    if error.errno in FULL:
        return kind(f"{doing}: {_text(error)}", reason="disk-full", hint=MAKE_ROOM, retryable=True)
    return kind(f"{doing}: {_text(error)}", reason=reason, hint=hint)


@contextmanager
def store_errors(doing: str, reason: str = "store-write") -> Iterator[None]:
    """Turn every OSError of the body into a StoreError."""
    try:
        yield
    except OSError as error:
        raise host_error(error, doing, StoreError, reason) from error


def _text(error: OSError) -> str:
    what = error.strerror or str(error)
    return f"{what} ({error.filename})" if error.filename is not None else what
