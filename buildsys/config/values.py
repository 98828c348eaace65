"""Values that several of the files that people write have in common."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator


def web_address(value: str) -> str:
    """An http or https URL with a host; raises ValueError for what no library would take as one."""
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("an address has no blanks and only ASCII characters; others are written as %XX")
    try:
        parts = urlsplit(value)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"no web address: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("expected an address such as 'https://example.org/files'")
    return value


WebAddress = Annotated[str, AfterValidator(web_address)]
