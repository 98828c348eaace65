"""This host's apt: which mirrors it is configured for, and what they offer now.

The host's own package lists can be months old or missing, and only root may refresh them. So they are not relied on:
the mirrors are read from the configuration, and what they offer is asked of lists of our own (Dir::State::Lists,
apt.conf(5)), which need no root and change nothing on the host. Ours begin as a copy of the host's: then apt refuses an
older index as it would for the host, and an archive that does not answer leaves what the host knows of it.
"""

from __future__ import annotations

import email.utils
import glob
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from buildsys.events import Note, Sink
from buildsys.files import atomic_write, exclusive, remove_tree
from buildsys.lock import Source
from buildsys.run import CommandError, Completed, run
from common.errors import FetchError, HostError

MAX_AGE = 24 * 3600  # seconds after which lists are refreshed
RETRY_AFTER = 600  # seconds until a refresh that failed is tried again
_UPDATE_SECONDS = 180
_HELPER = "/usr/lib/apt/apt-helper"
# How a person points apt at a configuration or a proxy; everything else of the environment stays out.
INHERIT = ("APT_CONFIG", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy")
# Read after the host's configuration (apt-get(8), --config-file). Its hooks act on the host; what is installed there is
# of no interest; of the indexes only those of packages are read. A hash is all that is taken from an index, so it must
# be signed, and its archive may call itself something new.
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
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
Acquire::AllowReleaseInfoChange "true";
Acquire::Languages "none";
Acquire::Retries "0";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
APT::Get::AllowUnauthenticated "false";
APT::Sandbox::User "root";
APT::Update::Error-Mode "any";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
Dir::State::status "/dev/null";
"""


def _apt(argv: Sequence[str | Path], timeout: float, pass_fds: Sequence[int] = ()) -> Completed:
    return run(argv, timeout=timeout, split=True, inherit=INHERIT, pass_fds=pass_fds)


def configured() -> str:
    """What a refresh would ask for, one URI a line, from apt's configuration alone; "" where there is no apt."""
    argv = ["apt-get", "-o", "Dir::State::Lists=/nonexistent", "-o", "Debug::NoLocking=1", "--print-uris", "update"]
    try:
        return _apt(argv, 30).text
    except (CommandError, HostError):
        return ""


def sites() -> list[str]:
    """The mirrors that apt is configured for, in any form that it knows (apt-transport-*(1)): what pool/… is below."""
    found = re.findall(r"^'([a-z][a-z0-9+]*:[^']+?)/+dists/", configured(), re.MULTILINE)
    return [site for site in dict.fromkeys(found) if not site.startswith("cdrom:")]


def download_command(uri: str, sha256: str, target: Path) -> list[str]:
    """The command with which apt fetches one file: it knows the proxies and credentials of its configuration."""
    return [_HELPER, "-o", "APT::Sandbox::User=root", "download-file", uri, str(target), f"SHA256:{sha256}"]


@dataclass(frozen=True)
class Index:
    """What the configured mirrors offer. folder: where our lists are kept; offline: never refresh them."""

    folder: Path
    sink: Sink
    offline: bool = False

    def newest(self, package: str) -> Source | None:
        """The version that apt would take, or None; from lists that are refreshed first when they are old.

        Raises FetchError: apt-unknown when an answer is not understood, apt-lists when the lists cannot be read.
        """
        with self._locked() as lock:
            self._bring_up_to_date(lock)
            try:
                return self.known(package)
            except FetchError as error:
                if error.reason != "apt-lists" or self.offline:
                    raise
                self.forget()
                self._bring_up_to_date(lock)
            return self.known(package)

    def known(self, package: str) -> Source | None:
        """The same from the lists as they are; asks nobody and writes nothing. Raises FetchError as `newest` does."""
        if not self._config.is_file():
            return None
        try:
            answer = _apt(["apt-cache", *self._options, "show", "--no-all-versions", package], 60).text
        except CommandError:
            self._check()
            return None  # its status for a package that it does not know
        # The name is a pattern to apt-cache when there is no package of that name.
        records = [
            record for record in answer.split("\n\n") if re.search(f"^Package: {re.escape(package)}$", record, re.M)
        ]
        return parse_offer(records[0]) if records else None

    def forget(self) -> None:
        """Begin again at the next question: with the host's lists, refreshed."""
        remove_tree(self._lists)
        self._stamp.unlink(missing_ok=True)

    @property
    def _lists(self) -> Path:
        return self.folder / "lists"

    @property
    def _config(self) -> Path:
        return self.folder / "apt.conf"

    @property
    def _stamp(self) -> Path:
        """Of what the lists are (a digest: URIs may hold passwords), and when they are to be refreshed."""
        return self.folder / "refreshed.json"

    @property
    def _options(self) -> list[str]:
        return [f"--config-file={self._config}", "-o", f"Dir::State::Lists={self._lists}"]

    @contextmanager
    def _locked(self) -> Iterator[int]:
        self.folder.mkdir(parents=True, exist_ok=True)
        told: list[bool] = []

        def blocked() -> None:
            if not told:
                self.sink(Note("info", "waiting for another build that asks the distribution's mirrors"))
            told.append(True)

        with exclusive(self.folder / "lock", blocked) as lock:
            atomic_write(self._config, _CONFIG)
            yield lock

    def _check(self) -> None:
        """Raise FetchError (apt-lists) when apt cannot read our lists."""
        try:
            _apt(["apt-cache", *self._options, "pkgnames", "-"], 60)
        except CommandError as error:
            last = error.message.splitlines()[-1]
            raise FetchError(f"package lists cannot be read: {last}", reason="apt-lists") from error

    def _bring_up_to_date(self, lock: int) -> None:
        """Take over newer lists of the host's, and ask the mirrors when that is due.

        lock: held until apt has ended, also when this process is killed before.
        """
        (self._lists / "partial").mkdir(parents=True, exist_ok=True)
        take_newer(_host_lists(), self._lists)
        sources = hashlib.sha256(configured().encode()).hexdigest()
        if self.offline or not self._due(sources):
            return
        self.sink(Note("info", "asking the distribution's mirrors what they offer"))
        problem, wait = None, MAX_AGE
        try:
            _apt(["apt-get", *self._options, "update"], _UPDATE_SECONDS, (lock,))
        except (CommandError, HostError) as error:
            lines = [line for line in error.message.splitlines() if line.startswith("E: ")]
            problem, wait = (lines or error.message.splitlines())[0], RETRY_AFTER
        atomic_write(self._stamp, json.dumps({"sources": sources, "due": time.time() + wait}).encode())
        if problem is not None:
            newest = max((dated(file) for file in self._lists.glob("*Release")), default=0.0)
            day = time.strftime("%Y-%m-%d", time.gmtime(newest))
            known = f"known is what was offered on {day}" if newest else "nothing is known"
            self.sink(Note("warning", f"package lists could not be refreshed ({problem}); {known}"))

    def _due(self, sources: str) -> bool:
        try:
            stamp = json.loads(self._stamp.read_bytes())
            return stamp["sources"] != sources or not 0 < stamp["due"] - time.time() <= MAX_AGE
        except (OSError, ValueError, KeyError, TypeError):
            return True


def take_newer(theirs: Path, ours: Path) -> None:
    """Copy the lists of every archive of which `theirs` are newer by the archive's own date, or which `ours` lack."""
    for release in theirs.glob("*Release"):
        archive = release.name.removesuffix("InRelease").removesuffix("Release")
        mine = list(ours.glob(f"{glob.escape(archive)}*"))
        if dated(release) <= max((dated(file) for file in mine if file.name.endswith("Release")), default=-1.0):
            continue
        for file in mine:
            remove_tree(file)
        for file in theirs.glob(f"{glob.escape(archive)}*"):
            if file.is_file() and file != release:
                shutil.copy2(file, ours)
        shutil.copy2(release, ours)  # last: without it the others count for nothing


def dated(release: Path) -> float:
    """When an archive made this Release file (its field Date), seconds since 1970; 0.0 if it does not say."""
    try:
        with release.open("rb") as file:
            found = re.search(rb"^Date: *([ -~]+)$", file.read(1 << 16), re.MULTILINE)
        return email.utils.parsedate_to_datetime(found[1].decode()).timestamp() if found else 0.0
    except (OSError, ValueError, OverflowError):
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
        return Source.model_validate(
            {
                "name": fields["Package"],
                "version": fields["Version"],
                "sha256": fields["SHA256"],
                "file": Path(fields["Filename"]).name,
                "size": int(fields["Size"]),
                "pool": fields["Filename"],
            }
        )
    except (KeyError, ValueError) as error:
        what = f"no {error}" if isinstance(error, KeyError) else str(error).splitlines()[0]
        raise FetchError(f"apt describes it in a way that is not understood: {what}", reason="apt-unknown") from error


def newer(version: str, than: str) -> bool:
    """Whether a package version is newer, as dpkg orders them (deb-version(7))."""
    return run(["dpkg", "--compare-versions", version, "gt", than], allow=(0, 1), split=True).status == 0
