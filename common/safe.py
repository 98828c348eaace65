"""Text from outside (log lines, descriptions, names) made harmless for a terminal.

A terminal obeys control characters: ESC sequences can rename its window, answer as if typed, hide or repaint lines
(ECMA-48; C1 controls do the same without ESC), a lone carriage return overwrites a line, and Unicode's bidirectional
controls show characters in another order than they have (Unicode Technical Report 36). All of them become visible
escapes such as `\\x1b`. Only newline and tab are left.
"""

from __future__ import annotations

import re

_UNSAFE = re.compile(
    "[\0-\b\v-\x1f\x7f-\x9f"  # C0 without tab and newline, DEL, C1
    "\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\U000e0000-\U000e007f"  # order, invisible
    "\ud800-\udfff]"  # lone surrogates: not text, and no encoder takes them
)


def printable(text: str) -> str:
    """`text` with everything that a terminal would obey written as an escape."""
    return _UNSAFE.sub(_escape, text)


def one_line(text: object, limit: int = 200) -> str:
    """Like `printable` for a value inside a line: no newline or tab either, and at most `limit` characters."""
    line = printable(str(text)).replace("\n", "\\n").replace("\t", " ")
    return line if len(line) <= limit else f"{line[: limit - 3]}..."


def printable_json(document: str) -> str:
    """The same for a JSON document: it stays one, with the same content, since its strings know `\\u009b`."""
    return _UNSAFE.sub(_escape_json, document)


def _escape(found: re.Match[str]) -> str:
    number = ord(found[0])
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}"


def _escape_json(found: re.Match[str]) -> str:
    number = ord(found[0])
    if number < 0x10000:
        return f"\\u{number:04x}"
    number -= 0x10000  # RFC 8259 section 7: characters beyond the first plane are two surrogates
    return f"\\u{0xD800 | number >> 10:04x}\\u{0xDC00 | number & 0x3FF:04x}"


def without_password(text: str) -> str:
    """The text with the password of every URL in it masked, and a name that stands without one: it may be a token
    (RFC 3986, section 3.2.1)."""
    return re.sub(r"(\w://)([^\s/:@]*:)?[^\s/?#]+@", r"\1\2***@", text)
