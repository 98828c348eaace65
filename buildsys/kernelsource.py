"""Decide which kernel source a build uses, and get it.

'auto' means, in this order: the pinned release; the fallback that sources.lock names by hash, with which this version
was tested; the newest version of the first of the distribution's LTS source packages that its mirrors offer, whose hash
comes from the package index that apt has verified. What is not the pin is said loudly. The decision is recorded in the
cache, so that a build does not knock on an unreachable door each time; it holds for as long as the lock says the same
and, where it came from the index, until a newer version is offered. `mixos fetch --retry-pin` forgets it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from buildsys.apt import Index, newer
from buildsys.events import Note
from buildsys.fetch import Fetcher
from buildsys.files import atomic_write
from buildsys.graph import FromPath, FromSource, Input
from buildsys.lock import Lock, Source
from buildsys.project import Project
from buildsys.run import CommandError
from common.errors import FetchError, HostError, MixosError
from kernel.source import FALLBACKS, parse_selection, source_version

PIN = "linux"  # names in sources.lock
FALLBACK = "linux-fallback"
MEMORY_BYTES = 64 << 10  # more than a record of a decision has


@dataclass(frozen=True)
class KernelChoice:
    """requested: the pinned version, or 'path'. source: what is used, for people. note: why it is not the pin."""

    requested: str
    source: str
    fallback: bool = False
    note: str = ""

    def __str__(self) -> str:
        return self.source + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Chooser:
    """What the decision needs. memory: the file that records it."""

    root: Path
    lock: Lock
    fetcher: Fetcher
    index: Index
    memory: Path

    @classmethod
    def at(cls, project: Project, fetcher: Fetcher) -> Chooser:
        """The one of a checkout."""
        index = Index(project.cache / "apt", fetcher.sink, fetcher.offline)
        return cls(project.root, project.lock, fetcher, index, project.cache / "kernel-fallback.json")

    def forget(self) -> None:
        """Decide anew at the next build, from fresh knowledge."""
        self.memory.unlink(missing_ok=True)
        self.index.forget()

    def choose(self, requested: str) -> tuple[KernelChoice, Input, Lock]:
        """The decision, the input for the plan, and the lock with what the index gave added.

        requested: 'auto', 'pinned' or a path relative to `root`. Raises FetchError when no kernel can be had,
        ConfigError when the path is not there or not a kernel of 6.1 or newer.
        """
        selection = parse_selection(requested, self.root)
        if selection.path is not None:
            version = source_version(selection.path)
            choice = KernelChoice("path", f"{selection.path.name} (Linux {version})")
            return choice, FromPath(selection.path, hide=(".git",)), self.lock
        pin = self.lock[PIN]
        source = self._source(pin) if selection.may_fall_back and not self.fetcher.have(pin) else pin
        if source == pin:
            return KernelChoice(pin.version, pin.file), FromSource(PIN), self.lock
        # The same words however the source was found: they become part of the image.
        note = f"Linux {pin.version} could not be had; the distribution's {source.file} is used"
        self.fetcher.sink(Note("warning", f"{note}. 'kernel.source = \"pinned\"' forbids this"))
        if self._locked is None or source.sha256 != self._locked.sha256:
            self.fetcher.sink(Note("warning", f"{source.file} is not the fallback that this version was tested with"))
        merged = replace(self.lock, sources={**self.lock.sources, source.name: source})
        return KernelChoice(pin.version, source.file, True, note), FromSource(source.name), merged

    def outlook(self, requested: str) -> str:
        """What `choose` would say, as far as it is known without asking anybody. Raises ConfigError."""
        selection = parse_selection(requested, self.root)
        pin = self.lock[PIN]
        if selection.path is not None:
            return f"Linux {source_version(selection.path)} of {selection.path}"
        if not selection.may_fall_back or self.fetcher.have(pin):
            return f"Linux {pin.version}, the pin" + ("" if self.fetcher.have(pin) else "; it is not here yet")
        known = self._recall(pin)
        if known is None:
            return f"not chosen yet: Linux {pin.version} if it can be had, else a source of the distribution's"
        text = f"{known.file}, because Linux {pin.version} could not be had"
        try:
            offered = next((found for line in FALLBACKS if (found := self.index.known(line)) is not None), None)
        except (MixosError, OSError):  # lists that cannot be read say nothing
            offered = None
        return text + (f"; the distribution offers {offered.file}" if offered and _is_newer(offered, known) else "")

    def _source(self, pin: Source) -> Source:
        """The source that 'auto' leads to when the pin is not here; it is there when this returns."""
        known = self._recall(pin)
        if known is not None and self.fetcher.have(known) and (self.fetcher.offline or not self._superseded(known)):
            return known
        try:
            self.fetcher.get(pin)
            return pin
        except FetchError as error:
            reason = error
            self.fetcher.sink(Note("info", error.message))
        try:
            found = self._fallback(reason)
        except FetchError as error:
            if known is None or not self.fetcher.have(known):
                raise
            self.fetcher.sink(Note("warning", f"{known.file} is used again: {error.message.splitlines()[-1].strip()}"))
            return known
        if not self.fetcher.offline:  # what was not asked for may well be had
            locked = self._locked
            data = {"pin": pin.sha256, "locked": locked and locked.sha256, "chosen": found.model_dump(by_alias=True)}
            atomic_write(self.memory, json.dumps(data).encode())
        return found

    @property
    def _locked(self) -> Source | None:
        return self.lock.sources.get(FALLBACK)

    def _recall(self, pin: Source) -> Source | None:
        """What was recorded under the same lock, if anything."""
        try:
            with self.memory.open("rb") as file:
                data = json.loads(file.read(MEMORY_BYTES))
            same = data["pin"] == pin.sha256 and data["locked"] == (self._locked and self._locked.sha256)
            found = Source.model_validate(data["chosen"]) if same else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        # It must not stand in for any other source of the lock.
        return found if found is not None and (found == self._locked or found.name in FALLBACKS) else None

    def _superseded(self, known: Source) -> bool:
        """Whether it came from the index, and that offers a newer one by now."""
        if self._locked is not None and known.sha256 == self._locked.sha256:
            return False
        try:
            offered = next((found for line in FALLBACKS if (found := self.index.newest(line)) is not None), None)
        except (FetchError, HostError, CommandError):
            return False
        return offered is not None and _is_newer(offered, known)

    def _fallback(self, pin_error: FetchError) -> Source:
        """Get the locked fallback, else the newest on offer. Raises FetchError that tells of all that was tried."""
        problems = [pin_error.message]
        if self._locked is not None:
            try:
                self.fetcher.get(self._locked)
                return self._locked
            except FetchError as error:
                problems.append(error.message)
        for package in FALLBACKS:
            for again in (False, True):
                try:
                    found = self._offer(package)
                    self.fetcher.get(found)
                    return found
                except (CommandError, HostError, FetchError) as error:
                    problems.append(f"{package}: {error.message}")
                    if isinstance(error, FetchError) and error.reason in ("disk-full", "fetch-write", "fetch-stopped"):
                        raise
                    if again or self.fetcher.offline or error.reason != "fetch-failed":
                        break
                    self.index.forget()  # the mirrors may have moved on since they were asked
        if self.fetcher.offline:
            raise pin_error
        raise FetchError(
            "no kernel source could be had:\n" + "\n".join(problems),
            reason="kernel-source-unavailable",
            hint="check the network and apt's sources, or give a tree or tarball with --kernel-source PATH",
            retryable=True,
        ) from pin_error

    def _offer(self, package: str) -> Source:
        """The version on offer. Raises FetchError also for one that is older than the locked fallback."""
        found = self.index.newest(package)
        if found is None:
            raise FetchError("no mirror that apt is configured for offers it", reason="apt-unknown")
        if self._locked is not None and newer(self._locked.version, found.version):
            text = f"only {found.version} is offered, which is older than {self._locked.version}"
            raise FetchError(text, reason="apt-too-old")
        return found


def _is_newer(offered: Source, known: Source) -> bool:
    return offered.sha256 != known.sha256 and newer(offered.version, known.version)


def describe(choice: KernelChoice) -> dict[str, object]:
    """The JSON form recorded in os-release and the manifest."""
    return asdict(choice)
