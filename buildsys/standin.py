"""Sources of which sources.lock names another one that does as well, for a day when the first cannot be had.

Distributions remove a file when they have a newer one, and this host may see nothing but their mirrors. What stands in
is said at every build and recorded in the manifest, and `mixos release` refuses it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from buildsys.events import Note
from buildsys.fetch import Fetcher
from buildsys.lock import Lock, Source
from common.errors import FetchError


def available(lock: Lock, fetcher: Fetcher) -> tuple[Lock, Mapping[str, str]]:
    """A lock whose sources can be had, and by name which file stands in for which source.

    A source is asked for only when it names another one (`instead`) and is not here. Raises FetchError of the first one
    when none of them can be had.
    """
    named = {source.instead for source in lock.sources.values()}
    first = [source for source in lock.sources.values() if source.instead and source.name not in named]
    found = {source.name: _first(lock, source, fetcher) for source in first}
    others = {name: source for name, source in found.items() if source != lock[name]}
    for name, source in others.items():
        fetcher.sink(Note("warning", f"{lock[name].file} could not be had; {source.file} is used in its place"))
    as_named = {name: source.model_copy(update={"name": name}) for name, source in others.items()}
    return replace(lock, sources={**lock.sources, **as_named}), {name: one.file for name, one in others.items()}


def _first(lock: Lock, source: Source, fetcher: Fetcher) -> Source:
    chain = [source]
    while chain[-1].instead:
        chain.append(lock[chain[-1].instead])
    refused: FetchError | None = None
    for one in chain:
        try:
            fetcher.get(one)
            return one
        except FetchError as error:
            if error.reason not in ("fetch-failed", "fetch-offline"):
                raise
            refused = refused or error
    assert refused is not None
    raise refused
