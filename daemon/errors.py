"""Errors of the device's programs; the members are those of `packages.mix.errors.DeviceError`."""

from __future__ import annotations

from packages.mix.errors import DeviceError

__all__ = [
    "ConfigError",
    "DeviceError",
    "DiskError",
    "NotFoundError",
    "RefusedError",
    "RpcError",
    "SettingsError",
    "UnreachableError",
]


class ConfigError(DeviceError):
    """A file that people write (unit, profile, network, firewall) is wrong; one line per mistake, file:line:column."""

    exit_code = 3


class NotFoundError(DeviceError):
    """What was named does not exist; the hint says what is near it."""

    exit_code = 4


class RefusedError(DeviceError):
    """The request is understood and not allowed: role, policy, or a state in which it would do harm."""

    exit_code = 7


class SettingsError(DeviceError):
    """Settings (mixos.toml, preseed) are wrong; one line per mistake, each with file and line."""

    exit_code = 3


class DiskError(DeviceError):
    """The data partition cannot be made, grown or found."""

    exit_code = 8


class UnreachableError(DeviceError):
    """The daemon does not answer."""

    exit_code = 10


class RpcError(DeviceError):
    """The daemon answered with an error; `code` is the JSON-RPC one."""

    exit_code = 11

    def __init__(self, message: str, *, code: int, reason: str) -> None:
        super().__init__(message, reason=reason)
        self.code = code
