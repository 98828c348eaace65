"""Host packages that tests and benchmarks need: listed in ci/, installed when that needs no password.

A test that would be skipped because a program is missing proves nothing, so what is missing is installed or named.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from buildsys.run import CLEAN_ENV, CommandError, run
from common.errors import HostError

ROOT = Path(__file__).resolve().parents[1]
INSTALL = ("apt-get", "install", "--yes", "--no-install-recommends")
_LOCK = ("-o", "DPkg::Lock::Timeout=300")  # seconds to wait for another apt
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_SECONDS = 900


@dataclass(frozen=True)
class Needed:
    """A line of a list. mark: a program's name or an absolute path that is there when the package is."""

    package: str
    mark: str
    users: frozenset[str]

    def missing(self) -> bool:
        """Whether this host lacks it."""
        if self.mark.startswith("/"):
            return not Path(self.mark).exists()
        return shutil.which(self.mark, path=CLEAN_ENV["PATH"]) is None


def read(path: Path) -> Iterator[Needed]:
    """The lines of a list: `package mark user…`, `#` starts a comment."""
    for line in path.read_text("utf-8").splitlines():
        words = line.partition("#")[0].split()
        if words:
            yield Needed(words[0], words[1], frozenset(words[2:]))


def ensure(path: Path, users: Collection[str]) -> list[str]:
    """Install what `users` need and this host lacks; returns the packages that were installed.

    Raises HostError "test-packages" with the command to run when it may not or cannot.
    """
    with path.open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes, which all want the same packages
        return _ensure([item for item in read(path) if item.users & set(users) and item.missing()])


def _ensure(missing: list[Needed]) -> list[str]:
    if not missing:
        return []
    packages = sorted({item.package for item in missing})
    prefix = _privilege()
    if prefix is None:
        raise _refusal(packages, "this user may not install packages")
    try:
        _install(prefix, packages)
    except (CommandError, HostError) as error:
        raise _refusal(packages, error.message) from error
    left = [item.mark for item in missing if item.missing()]
    if left:
        raise _refusal(packages, f"still missing afterwards: {', '.join(left)}")
    return packages


def _privilege() -> tuple[str, ...] | None:
    """What to put before a command that needs root: nothing, sudo, or None when neither works without a password."""
    if shutil.which("apt-get", path=CLEAN_ENV["PATH"]) is None:
        return None
    if os.geteuid() == 0:
        return ()
    if shutil.which("sudo", path=CLEAN_ENV["PATH"]) and run(["sudo", "-n", "true"], allow=range(256)).status == 0:
        return ("sudo", "-n")
    return None


def _install(prefix: tuple[str, ...], packages: list[str]) -> None:
    environment = [*prefix, "env", "DEBIAN_FRONTEND=noninteractive"]
    argv = [*environment, *INSTALL, *_LOCK, *packages]
    try:
        run(argv, inherit=_PROXIES, timeout=_SECONDS)
    except CommandError:  # most often an index that is older than the mirror
        run([*environment, "apt-get", "update"], inherit=_PROXIES, timeout=_SECONDS)
        run(argv, inherit=_PROXIES, timeout=_SECONDS)


def _refusal(packages: list[str], why: str) -> HostError:
    return HostError(
        f"the tests need host packages ({', '.join(packages)}): {why}",
        reason="test-packages",
        hint=f"run: sudo {' '.join(INSTALL)} {' '.join(packages)}",
    )
