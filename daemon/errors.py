"""Errors of the device's programs; the members are those of `packages.mix.errors.DeviceError`."""

from __future__ import annotations

from packages.mix.errors import DeviceError

__all__ = ["DeviceError", "DiskError", "RpcError", "SettingsError", "UnreachableError"]


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
