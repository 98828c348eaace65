"""/etc/mixos/metrics.toml:

history = "asked"              # or "always": the last hour is recorded even before anyone asked

[prometheus]
enable = true                  # default: false
listen = "127.0.0.1:9100"      # address and port; "[::1]:9100" for IPv6
units = true                   # with the figures of each unit
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import field_validator

from common.tomlfile import Strict, load
from common.values import address


class Prometheus(Strict):
    """The text endpoint."""

    enable: bool = False
    listen: str = "127.0.0.1:9100"
    units: bool = True

    @field_validator("listen")
    @classmethod
    def _address(cls, text: str) -> str:
        address(text)
        return text


class Config(Strict):
    """The whole file."""

    history: Literal["asked", "always"] = "asked"
    prometheus: Prometheus = Prometheus()


def read(etc: Path) -> Config:
    """The configuration; defaults without a file. Raises ConfigError."""
    path = etc / "metrics.toml"
    return load(path, Config) if path.exists() else Config()
