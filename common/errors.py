"""The errors a person can meet, on the build host and on the device: what happened, where, and what to do about it.

Every failure that is not a defect of ours derives from `MixosError`. Only the `main` of a program exits.
"""

from __future__ import annotations


class MixosError(Exception):
    """Base of all expected failures: a message for people (`message`), a next step (`hint`), a stable word for
    programs (`reason`, asserted by tests), and whether trying again may help. The class decides the exit code."""

    exit_code = 1

    def __init__(self, message: str, *, reason: str, hint: str | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.hint = hint
        self.retryable = retryable

    def as_json(self) -> dict[str, object]:
        """The object that `--json` prints for this error."""
        return {
            "error": self.message,
            "reason": self.reason,
            "hint": self.hint,
            "retryable": self.retryable,
            "exit_code": self.exit_code,
        }


class UsageError(MixosError):
    """The command line does not make sense."""

    exit_code = 2


class ConfigError(MixosError):
    """A file that people write is wrong (mixos.toml, recipe, lock, unit, network, …); one line per mistake, with
    file:line:column."""

    exit_code = 3


class SettingsError(ConfigError):
    """Settings of a device (in mixos.toml or a preseed) are wrong; one line per mistake, with
    file:line:column."""


# --- on the host ------------------------------------------------------------------------------------------------------


class FetchError(MixosError):
    """A source could not be had, or what came is not what was pinned."""

    exit_code = 4


class BuildError(MixosError):
    """An action failed; its log is named in the message."""

    exit_code = 5


class HostError(MixosError):
    """This machine lacks something: a tool, a namespace, disk space. `mixos doctor` explains."""

    exit_code = 6


class StoreError(MixosError):
    """The content store is damaged, locked or out of space."""

    exit_code = 7


class ImageError(MixosError):
    """An image, partition table, device or virtual machine is not as it must be."""

    exit_code = 8


class FormatError(ImageError):
    """Bytes that are not what a format demands."""

    def __init__(self, message: str, reason: str, *, retryable: bool = False) -> None:
        super().__init__(message, reason=reason, retryable=retryable)


class BundleError(FormatError):
    """A bundle (front, manifest, plan, window) is not what its format demands. Reasons begin with `bundle-`."""


class TrustError(MixosError):
    """A release, or who vouches for it, is not to be trusted; nothing of it was used. Reasons begin with `release-`."""

    exit_code = 12


class KeysError(MixosError):
    """Keys that sign releases are missing, too few, locked, or kept where others can read them."""

    exit_code = 13


class CheckError(MixosError):
    """A gate said no: dropped kernel symbol, hardening level, ELF rule, file conflict, size budget."""

    exit_code = 9


class ArtifactError(CheckError):
    """A package artifact is malformed, unsafe or does not match its manifest."""


# --- on the device ----------------------------------------------------------------------------------------------------


class NotFoundError(MixosError):
    """What was named does not exist; the hint says what is near it."""

    exit_code = 4


class RefusedError(MixosError):
    """The request is understood and not allowed: role, policy, or a state in which it would do harm."""

    exit_code = 7


class DiskError(MixosError):
    """The data partition cannot be made, grown or found."""

    exit_code = 8


class UnreachableError(MixosError):
    """The daemon does not answer."""

    exit_code = 10


class RpcError(MixosError):
    """The daemon answered with an error; `code` is the JSON-RPC one."""

    exit_code = 11

    def __init__(self, message: str, *, code: int, reason: str) -> None:
        super().__init__(message, reason=reason)
        self.code = code
