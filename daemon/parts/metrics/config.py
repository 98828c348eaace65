"""/etc/mixos/metrics.toml:

history = "asked"              # or "always": the last hour is recorded even before anyone asked

[prometheus]
enable = true                  # default: false
listen = "127.0.0.1:9100"      # address and port; "[::1]:9100" for IPv6
units = true                   # with the figures of each unit
"""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Literal

from pydantic import field_validator

from common.tomlfile import Strict, load


class Prometheus(Strict):
    """The text endpoint."""

    enable: bool = False
    listen: str = "127.0.0.1:9100"
    units: bool = True

    @field_validator("listen")
    @classmethod
    def _address(cls, text: str) -> str:
        split(text)
        return text


class Config(Strict):
    """The whole file."""

    history: Literal["asked", "always"] = "asked"
    prometheus: Prometheus = Prometheus()


def split(listen: str) -> tuple[str, int]:
    """Address and port of "ADDRESS:PORT". Raises ValueError saying what is expected."""
    host, _, port = listen.rpartition(":")
    six = host.startswith("[") and host.endswith("]")
    try:
        address = ipaddress.ip_address(host[1:-1] if six else host)
    except ValueError:
        raise ValueError("must be an IP address and a port, such as 127.0.0.1:9100 or [::1]:9100") from None
    if (address.version == 6) != six or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("must be an IP address and a port, such as 127.0.0.1:9100 or [::1]:9100")
    return str(address), int(port)


def read(etc: Path) -> Config:
    """The configuration; defaults without a file. Raises ConfigError."""
    path = etc / "metrics.toml"
    return load(path, Config) if path.exists() else Config()
