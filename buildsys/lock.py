"""sources.lock: every source that any build may use, pinned by SHA-256. No hash, no build."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints

from buildsys.config.values import WebAddress
from common.errors import ConfigError
from common.tomlfile import Strict, load

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.+-]*$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+~-]{0,200}$")]
PoolPath = Annotated[str, StringConstraints(pattern=r"^pool/[A-Za-z0-9._+~/-]+$")]


class Source(Strict):
    """One pinned file and the places it can come from.

    urls: upstream, tried in order. pool: its path below any distribution mirror. pip: the requirement that names the
    wheel on a Python package index. The hash decides; where the bytes came from does not matter. instead: the name of
    the source that stands in for this one when it cannot be had (`buildsys.standin`).
    """

    name: Name
    version: str
    sha256: Sha256
    file: FileName
    size: Annotated[int, Field(gt=0)] | None = None
    urls: tuple[WebAddress, ...] = ()
    pool: PoolPath | None = None
    pip: str | None = None
    instead: Name | None = None


class _LockFile(Strict):
    source: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Lock:
    """The sources by name."""

    path: Path
    sources: Mapping[str, Source]

    def __getitem__(self, name: str) -> Source:
        if name not in self.sources:
            close = difflib.get_close_matches(name, self.sources, n=1)
            raise ConfigError(
                f"{self.path}: source '{name}' is not locked",
                reason="source-not-locked",
                hint=f"did you mean '{close[0]}'?" if close else "add it with its sha256: no hash, no build",
            )
        return self.sources[name]


def load_lock(path: Path) -> Lock:
    """Read sources.lock. Raises ConfigError when it is malformed, names a source twice, or `instead` leads nowhere."""
    sources: dict[str, Source] = {}
    for source in load(path, _LockFile).source:
        if source.name in sources:
            raise ConfigError(f"{path}: source '{source.name}' is locked twice", reason="source-duplicate")
        sources[source.name] = source
    lock = Lock(path, sources)
    for source in sources.values():
        seen = {source.name}
        while source.instead:
            source = lock[source.instead]
            if source.name in seen:
                message = f"{path}: source '{source.name}' stands in for itself"
                raise ConfigError(message, reason="source-instead")
            seen.add(source.name)
    return lock
