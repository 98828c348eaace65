"""Kernel versions and ranges of them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from common.errors import ConfigError

_VERSION = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})(?:\.([0-9]{1,6}))?")
_BOUND = re.compile(r"(>=|<=|<|>|==)\s*([0-9.]+)")
_COMPARE: Mapping[str, Callable[[tuple[int, int, int], tuple[int, int, int]], bool]] = MappingProxyType(
    {">=": operator.ge, "<=": operator.le, "<": operator.lt, ">": operator.gt, "==": operator.eq}
)


@dataclass(frozen=True, order=True)
class Version:
    """A kernel version as its Makefile gives it: VERSION, PATCHLEVEL, SUBLEVEL. EXTRAVERSION (-rc1) is left out."""

    major: int
    minor: int
    patch: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read "6.6" or "6.6.8". Raises ConfigError (kernel-version) for anything else."""
        found = _VERSION.fullmatch(text.strip())
        if found is None:
            raise ConfigError(
                f"'{text}' is not a kernel version",
                reason="kernel-version",
                hint="expected two or three numbers with dots, such as 6.6.8",
            )
        return cls(int(found[1]), int(found[2]), int(found[3] or 0))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}.{self.patch}"

    @property
    def key(self) -> tuple[int, int, int]:
        """The three numbers, for comparisons."""
        return (self.major, self.minor, self.patch)


@dataclass(frozen=True)
class Range:
    """Versions between bounds, all of which must hold: ">=6.9,<6.12". The word "any" has no bound."""

    text: str
    bounds: tuple[tuple[str, Version], ...]

    @classmethod
    def parse(cls, text: str) -> Range:
        """Read a range. Raises ConfigError (kernel-version-range)."""
        if text == "any":
            return cls(text, ())
        bounds: list[tuple[str, Version]] = []
        for part in text.split(","):
            found = _BOUND.fullmatch(part.strip())
            if found is None:
                raise ConfigError(
                    f"'{text}' is not a range of kernel versions",
                    reason="kernel-version-range",
                    hint='expected "any" or bounds with commas, such as ">=6.9,<6.13"',
                )
            bounds.append((found[1], Version.parse(found[2])))
        return cls(text, tuple(bounds))

    def __contains__(self, version: Version) -> bool:
        return all(_COMPARE[sign](version.key, bound.key) for sign, bound in self.bounds)
