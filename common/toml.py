"""TOML from outside: as `tomllib` reads it, in a time that grows as the text does, and with one kind of error.

`tomllib` itself needs time by the square of the parts of a dotted key, raises ValueError for a number of thousands of
digits, and RecursionError for what nests too deeply or, later, lets others raise it. Standard library only: the first
boot reads this, too.
"""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

from common.lines import split_lines
from common.nesting import deeper

TOMLDecodeError = tomllib.TOMLDecodeError
DEPTH = 64  # parts of a key, and levels of a document

_PART = r"""(?>[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*')"""
_TEXT = r"""(?:'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+")"""
_TUPLE = re.compile(rf"\({_TEXT}(?:,|(?:, {_TEXT})+)\)")  # how a message of `tomllib` names a table
_PLACE = re.compile(r" \(at (?:line (\d+), column (\d+)|end of document)\)$")
# Texts and comments, in which dots mean nothing, a key of too many parts, and a single word.
_TOKEN = re.compile(
    r'"{3}(?:[^"\\]|\\.|"(?!""))*+"{3,5}|' + r"'{3}(?:[^']|'(?!''))*+'{3,5}|#[^\n]*|"
    rf"(?P<key>{_PART}(?>[ \t]*\.[ \t]*{_PART}){{{DEPTH}}})|{_PART}",
    re.DOTALL,
)


def loads(text: str) -> dict[str, Any]:
    """The document. Raises TOMLDecodeError; its text has line and column, where `tomllib` tells them."""
    for token in _TOKEN.finditer(text):
        if token["key"]:
            line, begin = text.count("\n", 0, token.start()) + 1, text.rfind("\n", 0, token.start()) + 1
            place = f"(at line {line}, column {token.start() - begin + 1})"
            raise TOMLDecodeError(f"A key has more than {DEPTH} parts {place}")
    try:
        found = tomllib.loads(text)
    except TOMLDecodeError:
        raise
    except ValueError as error:
        raise TOMLDecodeError("A number has too many digits") from error
    except RecursionError as error:
        raise TOMLDecodeError("It is nested too deeply") from error
    if deeper(found, DEPTH):
        raise TOMLDecodeError("It is nested too deeply")
    return found


def explained(error: TOMLDecodeError, name: object, text: str) -> str:
    """What is wrong with the text of the file `name`: "name:line:column: …", without a place where none is told."""
    what = _TUPLE.sub(_dotted, str(error))
    found = _PLACE.search(what)
    if not found:
        return f"{name}: not valid TOML: {what}"
    lines = split_lines(text)
    spot = f"{found[1]}:{found[2]}" if found[1] else f"{len(lines) or 1}:{len(lines[-1]) + 1 if lines else 1}"
    return f"{name}:{spot}: not valid TOML: {what[: found.start()]}"


def _dotted(found: re.Match[str]) -> str:
    """A tuple in a message, as the key that the document has."""
    import ast  # only mistakes pay for it

    parts = ast.literal_eval(found[0])
    return ".".join(part if re.fullmatch(r"[A-Za-z0-9_-]+", part) else json.dumps(part) for part in parts)
