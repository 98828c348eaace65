"""This host's apt: which mirrors it is configured for, and what they offer now.

The host's own package lists can be months old or missing, and only root may refresh them. So they are not relied on:
the mirrors are read from the configuration, and what they offer is asked of lists of our own (Dir::State::Lists,
apt.conf(5)), which need no root and change nothing on the host. apt verifies them as it does the host's.
"""

from __future__ import annotations

import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from buildsys.digest import file_sha256
from buildsys.events import Note, Sink
from buildsys.lock import Source
from buildsys.run import CommandError, Completed, run
from common.errors import FetchError, HostError

MAX_AGE = 24 * 3600  # seconds after which lists are refreshed
RETRY_AFTER = 600  # seconds until a refresh that failed is tried again
_UPDATE_SECONDS = 180
_DOWNLOAD_SECONDS = 3600
# How a person points apt at a configuration or a proxy; everything else of the environment stays out.
_INHERIT = ("APT_CONFIG", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
# Read after the host's configuration (apt-get(8), --config-file). Its hooks act on the host; of the indexes only those
# of packages are read here.
_CONFIG = b"""\
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets;
Acquire::IndexTargets::deb::Packages {
  MetaKey "$(COMPONENT)/binary-$(ARCHITECTURE)/Packages";
  flatMetaKey "Packages";
  ShortDescription "Packages";
  Description "$(RELEASE)/$(COMPONENT) $(ARCHITECTURE) Packages";
  flatDescription "$(RELEASE) Packages";
  Optional "no";
};
Acquire::Languages "none";
Acquire::Retries "0";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
"""


def _apt(argv: Sequence[str | Path], timeout: float, cwd: Path | None = None) -> Completed:
    return run(argv, timeout=timeout, cwd=cwd, split=True, inherit=_INHERIT)


def configured() -> str:
    """What a refresh would ask for, one URI a line, from apt's configuration alone; "" where there is no apt."""
    argv = ["apt-get", "-o", "Dir::State::Lists=/nonexistent", "-o", "Debug::NoLocking=1", "--print-uris", "update"]
    try:
        return _apt(argv, 30).text
    except (CommandError, HostError):
        return ""


def sites() -> list[str]:
    """The package mirrors that this host's apt is configured for: what pool/… is below, without a closing slash."""
    found = re.findall(r"^'(https?://[^' ]+?)/+dists/", configured(), re.MULTILINE)
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Index:
    """What the configured mirrors offer. folder: where our lists are kept; offline: never refresh them."""

    folder: Path
    sink: Sink
    offline: bool = False

    @property
    def _stamp(self) -> Path:
        """Holds what the lists were last refreshed from; its time is that of the refresh."""
        return self.folder / "refreshed"

    def forget(self) -> None:
        """Refresh at the next question, however young the lists are."""
        self._stamp.unlink(missing_ok=True)

    def newest(self, package: str) -> Source | None:
        """The newest version on offer, or None. Raises FetchError (apt-unknown) when apt's answer is not understood."""
        with self._lists() as options:
            try:
                answer = _apt(["apt-cache", *options, "show", package], 60).text
            except CommandError:
                return None  # its status for a package that it does not know
            # Versions come in apt's order, the newest first (pkgCache::VersionList).
            return next((parse_offer(record) for record in answer.split("\n\n") if record.strip()), None)

    def download(self, source: Source, distfiles: Path) -> None:
        """Let apt fetch and verify what `newest` found, check the hash again, and put it among the distfiles.

        Raises FetchError (fetch-hash) when something else came, CommandError when apt failed.
        """
        work = distfiles / f"{source.sha256}.apt"
        work.mkdir(parents=True, exist_ok=True)
        with self._lists() as options:
            _apt(["apt-get", *options, "download", f"{source.name}={source.version}"], _DOWNLOAD_SECONDS, work)
        files = list(work.glob("*.deb"))
        right = [file for file in files if file_sha256(file) == source.sha256]
        if right:
            right[0].replace(distfiles / source.sha256)
        for file in work.iterdir():
            file.unlink()
        work.rmdir()
        if not right:
            raise FetchError(f"apt did not deliver {source.file} as its index describes it", reason="fetch-hash")

    @contextmanager
    def _lists(self) -> Iterator[list[str]]:
        """The options with which apt reads the best lists there are; held against other builds' refreshes."""
        ours = self.folder / "lists"
        (ours / "partial").mkdir(parents=True, exist_ok=True)
        config = self.folder / "apt.conf"
        with (self.folder / "lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            config.write_bytes(_CONFIG)
            options = [f"--config-file={config}", "-o", f"Dir::State::Lists={ours}"]
            if not self.offline and self._due():
                self._refresh(options)
            host = _host_lists()
            yield options if published(ours) >= published(host) else ["-o", f"Dir::State::Lists={host}"]

    def _due(self) -> bool:
        try:
            age = time.time() - self._stamp.stat().st_mtime
            return not 0 <= age < MAX_AGE or self._stamp.read_text() != configured()
        except OSError:
            return True

    def _refresh(self, options: Sequence[str]) -> None:
        """Refresh our lists; where that fails what is known stays, is said to be old, and it is tried again later."""
        self.sink(Note("info", "asking the distribution's mirrors what they offer"))
        problem = None
        try:
            _apt(["apt-get", *options, "update"], _UPDATE_SECONDS)
        except (CommandError, HostError) as error:
            lines = [line for line in error.message.splitlines() if line.startswith(("E: ", "W: "))]
            problem = (lines or error.message.splitlines())[0]
        self._stamp.write_text(configured())
        if problem is not None:
            then = time.time() - MAX_AGE + RETRY_AFTER
            os.utime(self._stamp, (then, then))
            newest = max(published(self.folder / "lists"), published(_host_lists()))
            known = f"known is what was offered on {time.strftime('%Y-%m-%d', time.gmtime(newest))}"
            known = known if newest else "nothing is known"
            self.sink(Note("warning", f"package lists could not be refreshed ({problem}); {known}"))


def published(lists: Path) -> float:
    """When the newest of these lists was made by its archive, seconds since 1970; 0.0 where there is none."""
    try:
        return max((file.stat().st_mtime for file in lists.glob("*Release")), default=0.0)
    except OSError:
        return 0.0


def _host_lists() -> Path:
    """The folder of the host's own lists."""
    try:
        answer = _apt(["apt-config", "shell", "LISTS", "Dir::State::Lists/d"], 30).text
    except (CommandError, HostError):
        return Path("/nonexistent")
    return Path(answer.removeprefix("LISTS='").removesuffix("'"))


def parse_offer(record: str) -> Source:
    """A record of `apt-cache show` (deb-control(5)) as a source. Raises FetchError (apt-unknown)."""
    fields = dict(line.split(": ", 1) for line in record.splitlines() if ": " in line and not line.startswith(" "))
    try:
        path = fields["Filename"]
        return Source.model_validate(
            {
                "name": fields["Package"],
                "version": fields["Version"],
                "sha256": fields["SHA256"],
                "file": Path(path).name,
                "size": int(fields["Size"]),
                "pool": path if path.startswith("pool/") else None,
            }
        )
    except (KeyError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise FetchError(f"apt describes it in a way that is not understood: {what}", reason="apt-unknown") from error
