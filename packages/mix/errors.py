"""The error base of code that runs both on the build host and on the device.

The host's base class, `buildsys.errors.MixosError`, is not installed on the device, and the device's code must not
import it. So shared modules (`packages.mix.manifest`, `daemon.settings`) raise classes of this module, which have the
same members: a sentence, a stable `reason`, a `hint`, an exit code. Host code turns them into its own classes at the
boundary (`packages.mix.artifact.host_errors`), so that `mixos` prints one kind of error.
"""

from __future__ import annotations


class DeviceError(Exception):
    """An expected failure: what happened and where (`message`), what to do (`hint`), a word for programs (`reason`)."""

    exit_code = 1

    def __init__(self, message: str, *, reason: str, hint: str | None = None, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.hint = hint
        self.retryable = retryable

    def as_json(self) -> dict[str, object]:
        """The object that `--json` prints for this error; same keys as on the host."""
        return {
            "error": self.message,
            "reason": self.reason,
            "hint": self.hint,
            "retryable": self.retryable,
            "exit_code": self.exit_code,
        }


class ArtifactError(DeviceError):
    """A package artifact is malformed, unsafe or does not match its manifest."""

    exit_code = 9
