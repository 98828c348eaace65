"""The boot parameters of the image: `cmdline.txt`, one parameter a line with a `#` comment for the reason."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from common.errors import ConfigError

# COMMAND_LINE_SIZE of x86 (arch/x86/include/asm/setup.h) less the closing zero; the root's dm-mod.create= (about 330
# bytes with two UUIDs, hash and salt) and what the machine adds must fit too.
LIMIT = 2047
RESERVED = 640


def parse_cmdline(text: str, file: str) -> list[str]:
    """The parameters, in order. Raises ConfigError: cmdline-syntax, cmdline-twice, cmdline-length."""
    parameters: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 1 or '"' in words[0] or not words[0].isascii():
            raise ConfigError(
                f"{file}:{number}: '{line.strip()}' is not one parameter",
                reason="cmdline-syntax",
                hint="one parameter a line, without blanks or quotes, then '#' and the reason",
            )
        if "#" not in line:
            raise ConfigError(f"{file}:{number}: {words[0]} has no reason behind '#'", reason="cmdline-syntax")
        if words[0] in parameters:
            raise ConfigError(f"{file}:{number}: {words[0]} is there twice", reason="cmdline-twice")
        parameters.append(words[0])
    if len(" ".join(parameters)) > LIMIT - RESERVED:
        raise ConfigError(
            f"{file}: {len(' '.join(parameters))} bytes; {LIMIT - RESERVED} leave room for the root's parameters",
            reason="cmdline-length",
        )
    return parameters


def read_cmdline(path: Path) -> list[str]:
    """Read cmdline.txt."""
    return parse_cmdline(path.read_text(encoding="utf-8-sig"), path.name)


def values(parameters: Iterable[str]) -> dict[str, list[str]]:
    """name → values in order; a parameter without '=' has the value "". A name may come several times (console)."""
    found: dict[str, list[str]] = {}
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        found.setdefault(name, []).append(value)
    return found
