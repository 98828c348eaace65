"""Text that people write, whichever editor they use."""

from __future__ import annotations

from datetime import date, datetime, time

from common.errors import ConfigError

MARK = "\ufeff"  # the byte order mark, with which editors of Windows begin a file


def decoded(data: bytes, name: object) -> str:
    """The content of the file `name` as text, without a byte order mark. Raises ConfigError `config-encoding`."""
    try:
        return data.decode("utf-8").removeprefix(MARK)
    except UnicodeDecodeError as error:
        hint = "it looks like UTF-16: save it as UTF-8" if is_utf16(data) else None
        raise ConfigError(f"{name}: not UTF-8 (byte {error.start})", reason="config-encoding", hint=hint) from error


def is_utf16(data: bytes) -> bool:
    """Does the content begin like UTF-16, which some editors call Unicode?"""
    return data.startswith((b"\xff\xfe", b"\xfe\xff"))


def shown(value: object) -> str:
    """A value of a TOML file for a message, as it may be written there."""
    if isinstance(value, bool):
        return str(value).lower()
    try:
        return value.isoformat() if isinstance(value, date | datetime | time) else repr(value)
    except RecursionError:
        return "a table that nests too deeply"
