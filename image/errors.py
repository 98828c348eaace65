"""The error of the format modules, which run on the host and on the device and so know nothing of `buildsys`."""

from __future__ import annotations


class FormatError(Exception):
    """Bytes that are not what the format demands; `reason` is the stable word for programs and tests."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
