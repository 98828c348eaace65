"""The errors a user can meet: what happened, where, and what to do about it.

Every failure that is not a defect of ours derives from `MixosError`. It carries a sentence for people (`message`), a
next step (`hint`), a stable word for programs (`reason`, asserted by tests) and whether trying again may help. The
class decides the exit code; only `buildsys.cli.main` exits.
"""

from __future__ import annotations


class MixosError(Exception):
    """Base of all expected failures. Exit codes: 1 generic, 2 usage, then one per class below."""

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
    """A file the user wrote (mixos.toml, recipe, lock, preseed, waiver) is wrong; the message says file:line:column."""

    exit_code = 3


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


class CheckError(MixosError):
    """A gate said no: dropped kernel symbol, hardening level, ELF rule, file conflict, size budget."""

    exit_code = 9
