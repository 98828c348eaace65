"""Get pinned files. The hash decides, so any place is as good as another; only verified files get their final name.

Order: distfiles folder (files named by their SHA-256) → configured mirrors → upstream → the distribution mirrors that
this host's apt is configured for, by ourselves and then by apt → for wheels, the index that pip is configured for.
Partial downloads resume (RFC 9110 §14.2).
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from buildsys import apt
from buildsys.digest import file_sha256
from buildsys.events import Fetched, FetchProgress, Note, Sink
from buildsys.files import exclusive, remove_tree, sync_folder
from buildsys.lock import Source
from buildsys.oserrors import host_error
from buildsys.run import inherited, kill_group, spawn
from common.errors import FetchError
from common.safe import without_password

ATTEMPTS = 3
OTHERS_SECONDS = 1800  # that pip or apt may take for one file


@dataclass
class Fetcher:
    """Gets locked sources into the distfiles folder. `dead_hosts` remembers, for this run, who did not answer."""

    distfiles: Path
    sink: Sink
    mirrors: tuple[str, ...] = ()
    offline: bool = False
    backoff: float = 1.0  # seconds before the second attempt; doubles
    dead_hosts: set[str] = field(default_factory=set)
    _stopped: threading.Event = field(default_factory=threading.Event)

    def stop(self) -> None:
        """End all downloads; what they have is kept for the next time."""
        self._stopped.set()

    def _check(self) -> None:
        if self._stopped.is_set():
            raise FetchError("stopped", reason="fetch-stopped", retryable=True)

    def have(self, source: Source) -> bool:
        """Is the file already there? (Its hash is checked when it is used.)"""
        return (self.distfiles / source.sha256).is_file()

    def get(self, source: Source) -> Path:
        """The verified file of a source. Raises FetchError listing every place that was tried."""
        try:
            return self._get(source)
        except OSError as error:
            raise host_error(error, f"cannot write to {self.distfiles}", FetchError, "fetch-write") from error

    def _get(self, source: Source) -> Path:
        final = self.distfiles / source.sha256
        if final.is_file() and file_sha256(final) == source.sha256:
            return final  # without a lock: what only has to be read may lie where we may not write
        self.distfiles.mkdir(parents=True, exist_ok=True)
        with exclusive(self.distfiles / f".{source.sha256}.lock", self._check):
            if self._present(source, final):
                return final
            if self.offline:
                raise FetchError(
                    f"source '{source.name}' ({source.file}) is not in {self.distfiles}; --offline forbids the network",
                    reason="fetch-offline",
                    hint=f"put the file there under the name {source.sha256}, or build once without --offline",
                )
            tried: list[str] = []
            for place in self._places(source):
                problem = self._try(source, place, final)
                if problem is None:
                    self.sink(Fetched(source.name, without_password(place)))
                    return final
                tried.append(without_password(f"  {place}: {problem}"))
        raise FetchError(
            f"source '{source.name}' ({source.file}) could not be had; tried:\n"
            + "\n".join(tried or ["  no place is known"]),
            reason="fetch-failed",
            hint=f"check the network, or put the file into {self.distfiles} under the name {source.sha256}",
            retryable=True,
        )

    def _present(self, source: Source, final: Path) -> bool:
        if not final.is_file():
            return False
        found = file_sha256(final)
        if found == source.sha256:
            return True
        final.unlink()
        self.sink(Note("warning", f"{final} was damaged (its sha256 is {found}): deleted, fetching it again"))
        return False

    def _places(self, source: Source) -> Iterator[str]:
        yield from (f"{mirror.rstrip('/')}/{source.sha256}" for mirror in self.mirrors)
        yield from source.urls
        if source.pool is not None:
            sites = apt.sites()
            yield from (f"{site}/{source.pool}" for site in sites if site.startswith(("http://", "https://")))
            yield from (f"apt:{site}/{source.pool}" for site in sites)  # with apt's own proxies and mirror lists
        if source.pip is not None:
            yield f"pip:{source.pip}"

    def _try(self, source: Source, place: str, final: Path) -> str | None:
        """Get and verify one file from one place; None when it is there, else what went wrong."""
        if place.startswith("pip:"):
            return self._from_pip(source, final)
        if place.startswith("apt:"):
            return self._from_apt(source, place.removeprefix("apt:"), final)
        from buildsys import download  # the HTTP library is slow to import, and most builds fetch nothing

        try:
            host = urllib.parse.urlsplit(place).netloc
        except ValueError as error:
            return str(error)
        if host in self.dead_hosts:
            return "skipped, this host did not answer before"
        partial = self.distfiles / f"{source.sha256}.partial"
        problem, dead = "", False
        for attempt in range(ATTEMPTS):
            self._check()
            begun = partial.exists()
            try:
                download.resume(place, partial, source.size, self._reporter(source))
                wrong = self._accept(source, partial, final)
                if wrong is None or not begun:
                    return wrong
                problem, dead = wrong, False  # what was there may have been the beginning of another file: once afresh
                continue
            except download.RefusedError as error:
                return str(error)
            except download.UnreachableError as error:
                problem, dead = str(error), not partial.exists()
            except download.BrokenError as error:
                problem, dead = str(error), False
            if _is(partial, source):  # the server promised more, or did not end: the hash decides
                return self._accept(source, partial, final)
            if dead or attempt == ATTEMPTS - 1:
                break
            self._stopped.wait(self.backoff * 2**attempt)
        if dead:
            self.dead_hosts.add(host)
        return problem

    def _reporter(self, source: Source) -> Callable[[int, int | None], None]:
        def report(received: int, total: int | None) -> None:
            self._check()
            self.sink(FetchProgress(source.name, received, total))

        return report

    def _accept(self, source: Source, partial: Path, final: Path) -> str | None:
        """Give a complete download its final name if its hash is right; else delete it and say both hashes."""
        with partial.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        if found != source.sha256:
            partial.unlink()
            return f"wrong content, deleted: expected sha256 {source.sha256}, got {found}"
        partial.replace(final)
        sync_folder(self.distfiles)
        return None

    def _from_apt(self, source: Source, uri: str, final: Path) -> str | None:
        """Let apt fetch a file, hash-checked by apt and again by us."""
        folder = self.distfiles / f"{source.sha256}.apt"
        remove_tree(folder)
        folder.mkdir()
        try:
            argv = apt.download_command(uri, source.sha256, folder / "file")
            problem = self._run(argv, apt.INHERIT, folder / "log")
            return self._accept(source, folder / "file", final) if problem is None else problem
        except FileNotFoundError:
            return "this machine has no apt"
        finally:
            remove_tree(folder)

    def _from_pip(self, source: Source, final: Path) -> str | None:
        """Ask pip's configured index for a wheel, hash-checked by pip and again by us."""
        folder = self.distfiles / f"{source.sha256}.pip"
        remove_tree(folder)
        folder.mkdir()
        try:
            requirement = folder / "requirement.txt"
            requirement.write_text(f"{source.pip} --hash=sha256:{source.sha256}\n")
            argv = [*pip_download(source.file), "--dest", str(folder), "--requirement", str(requirement)]
            problem = self._run(argv, PIP_ENV, folder / "log")
            if problem is not None:
                return problem
            wheels = list(folder.glob("*.whl"))
            return self._accept(source, wheels[0], final) if len(wheels) == 1 else "pip did not leave exactly one wheel"
        finally:
            remove_tree(folder)

    def _run(self, argv: list[str], inherit: Sequence[str], log_path: Path) -> str | None:
        """Run another downloader until it ends, or we are stopped; the last line it wrote if it failed."""
        with log_path.open("wb") as log:
            process = spawn(argv, env=inherited(inherit), log=log)
        end = time.monotonic() + OTHERS_SECONDS
        try:
            while process.poll() is None:
                self._check()
                if time.monotonic() > end:
                    return f"it did not end in {OTHERS_SECONDS} seconds"
                self._stopped.wait(0.2)
        finally:
            kill_group(process, 0)
        if process.returncode == 0:
            return None
        lines = log_path.read_bytes().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with status {process.returncode}"


def _is(path: Path, source: Source) -> bool:
    """Is a file that may not be complete the whole source?"""
    if not path.is_file() or source.size not in (None, path.stat().st_size):
        return False
    return file_sha256(path) == source.sha256


# How a person points pip at an index or a proxy; everything else of the environment stays out.
PIP_ENV = ("PIP_*", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")


def pip_download(wheel: str) -> list[str]:
    """The pip command that fetches exactly the wheel of that file name (PEP 427 tags), for whatever machine it is."""
    python, abi, platforms = wheel.removesuffix(".whl").split("-")[-3:]
    argv = [
        sys.executable,
        "-I",
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    if platforms != "any":
        argv += [word for platform in platforms.split(".") for word in ("--platform", platform)]
        argv += ["--abi", abi] if abi != "none" else []
    version = python.split(".")[-1].removeprefix("cp").removeprefix("py")
    return [*argv, *(["--python-version", f"{version[0]}.{version[1:]}"] if python.startswith("cp") else [])]
