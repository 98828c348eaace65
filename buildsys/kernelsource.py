"""Decide which kernel source a build uses, and get it.

'auto' means the pinned release when it can be had and otherwise, loudly, the distribution's signed LTS source package,
whose hash comes from the package index that apt has verified. The decision is recorded beside the cache, so that a
build does not knock on an unreachable door each time; `mixos fetch --retry-pin` forgets it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from buildsys.digest import file_sha256
from buildsys.errors import FetchError, HostError
from buildsys.events import Note
from buildsys.fetch import Fetcher
from buildsys.files import atomic_write
from buildsys.graph import FromPath, FromSource, Input
from buildsys.lock import Lock, Source
from buildsys.run import CommandError, run
from kernel.source import FALLBACKS, parse_selection, source_version

PIN = "linux"  # name in sources.lock


@dataclass(frozen=True)
class KernelChoice:
    """requested: the pinned version, or 'path'. source: what is used, for people. note: why it is not the pin."""

    requested: str
    source: str
    fallback: bool = False
    note: str = ""


def choose_kernel(
    requested: str, root: Path, lock: Lock, fetcher: Fetcher, memory: Path
) -> tuple[KernelChoice, Input, Lock]:
    """The decision, the input for the plan, and the lock with the fallback source added.

    requested: 'auto', 'pinned' or a path relative to `root`. memory: file that remembers a fallback. Raises FetchError
    when no kernel can be had, ConfigError when the path is not there or not a kernel of 6.1 or newer.
    """
    selection = parse_selection(requested, root)
    if selection.path is not None:
        version = source_version(selection.path)
        return KernelChoice("path", f"{selection.path.name} (Linux {version})"), FromPath(selection.path), lock
    pin = lock[PIN]
    pinned = KernelChoice(pin.version, pin.file)
    if not selection.may_fall_back or fetcher.have(pin):
        return pinned, FromSource(PIN), lock
    remembered = _recall(memory, pin)
    if remembered is None or not fetcher.have(remembered):
        try:
            fetcher.get(pin)
        except FetchError as error:
            remembered = _from_distribution(fetcher, error)
            atomic_write(
                memory, json.dumps({"pin": pin.sha256, "fallback": remembered.model_dump(by_alias=True)}).encode()
            )
        else:
            return pinned, FromSource(PIN), lock
    note = f"Linux {pin.version} could not be had; the distribution's {remembered.file} is used"
    fetcher.sink(Note("warning", f"{note}. 'kernel.source = \"pinned\"' forbids this"))
    merged = replace(lock, sources={**lock.sources, remembered.name: remembered})
    return KernelChoice(pin.version, remembered.file, True, note), FromSource(remembered.name), merged


def _recall(memory: Path, pin: Source) -> Source | None:
    """The fallback that was recorded for this pin, if any."""
    try:
        data = json.loads(memory.read_bytes())
        return Source.model_validate(data["fallback"]) if data["pin"] == pin.sha256 else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _from_distribution(fetcher: Fetcher, pin_error: FetchError) -> Source:
    """Download the first fallback package that apt offers. Raises FetchError with both stories when there is none."""
    problems: list[str] = []
    for fallback in FALLBACKS:
        try:
            return _apt_source(fallback.package, fetcher)
        except (CommandError, HostError, FetchError) as error:
            problems.append(f"  {fallback.package}: {error.message.splitlines()[-1]}")
    if fetcher.offline:
        raise pin_error
    raise FetchError(
        f"{pin_error.message}\nand the distribution's kernel sources could not be had either:\n" + "\n".join(problems),
        reason="kernel-source-unavailable",
        hint="run 'apt-get update', or give a tree or tarball with --kernel-source PATH",
        retryable=True,
    ) from pin_error


def _apt_source(package: str, fetcher: Fetcher) -> Source:
    fields = dict(
        line.split(": ", 1)
        for line in run(["apt-cache", "show", "--no-all-versions", package], split=True).text.splitlines()
        if ": " in line and not line.startswith(" ")
    )
    if "SHA256" not in fields:
        raise FetchError("not offered by any configured repository", reason="apt-unknown")
    try:
        source = Source.model_validate(
            {
                "name": package,
                "version": fields["Version"],
                "sha256": fields["SHA256"],
                "file": Path(fields["Filename"]).name,
                "size": int(fields["Size"]),
                "pool": fields["Filename"] if fields["Filename"].startswith("pool/") else None,
            }
        )
    except (KeyError, ValueError) as error:
        raise FetchError(f"apt describes it in a way that is not understood: {error}", reason="apt-unknown") from error
    if not fetcher.have(source):
        if fetcher.offline:
            raise FetchError("--offline forbids the network", reason="fetch-offline")
        fetcher.sink(Note("info", f"downloading {source.file} with apt ({(source.size or 0) >> 20} MiB)"))
        _apt_download(source, fetcher.distfiles)
    return source


def _apt_download(source: Source, distfiles: Path) -> None:
    """Let apt fetch and verify a package file, check the hash again, and put it among the distfiles."""
    with tempfile.TemporaryDirectory(dir=distfiles) as folder:
        run(
            ["apt-get", "-o", "APT::Sandbox::User=", "download", f"{source.name}={source.version}"],
            cwd=Path(folder),
            timeout=3600,
            inherit=("http_proxy", "https_proxy", "no_proxy"),
        )
        files = list(Path(folder).glob("*.deb"))
        if len(files) != 1 or file_sha256(files[0]) != source.sha256:
            raise FetchError(f"apt did not deliver {source.file} as its index describes it", reason="fetch-hash")
        shutil.move(files[0], distfiles / source.sha256)


def describe(choice: KernelChoice) -> dict[str, object]:
    """The JSON form recorded in os-release and the manifest."""
    return asdict(choice)
