"""A source that cannot be had, and another one that stands in."""

import hashlib
from pathlib import Path

import pytest

from buildsys.events import Note
from buildsys.fetch import Fetcher
from buildsys.lock import Lock, load_lock
from buildsys.standin import available
from common.errors import ConfigError, FetchError

ENTRY = '[[source]]\nname = "{name}"\nversion = "1"\nsha256 = "{sha}"\nfile = "{name}-1.deb"\n{more}\n'


def sha(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def lock(folder: Path, **instead: str) -> Lock:
    path = folder / "sources.lock"
    rows = (
        ENTRY.format(name=name, sha=sha(name), more=f'instead = "{other}"' if other else "")
        for name, other in instead.items()
    )
    path.write_text("".join(rows))
    return load_lock(path)


@pytest.mark.parametrize(
    ("here", "used", "said"),
    [
        ({"first"}, "first", 0),
        ({"first", "second"}, "first", 0),
        ({"second", "third"}, "second", 1),
        ({"third"}, "third", 1),
    ],
)
@pytest.mark.parametrize("offline", [False, True])
def test_the_first_that_can_be_had_is_used(tmp_path: Path, here: set[str], used: str, said: int, offline: bool) -> None:
    found = lock(tmp_path, first="second", second="third", third="", other="")
    distfiles = tmp_path / "distfiles"
    distfiles.mkdir()
    for name in here:
        (distfiles / sha(name)).write_text(name)
    heard: list[Note] = []
    settled, instead = available(found, Fetcher(distfiles, heard.append, offline=offline, backoff=0.0))  # type: ignore[arg-type]
    assert settled["first"].sha256 == sha(used)
    assert settled["first"].name == "first"
    assert settled["other"] == found["other"]
    assert instead.get("first") == (None if used == "first" else f"{used}-1.deb")
    assert sum(note.text.startswith("first-1.deb could not be had") for note in heard) == said


def test_when_none_can_be_had_the_first_is_told(tmp_path: Path) -> None:
    found = lock(tmp_path, first="second", second="")
    with pytest.raises(FetchError, match="'first'"):
        available(found, Fetcher(tmp_path / "distfiles", lambda event: None, backoff=0.0))


@pytest.mark.parametrize(
    ("instead", "reason"),
    [
        ({"a": "a"}, "source-instead"),
        ({"a": "b", "b": "c", "c": "b"}, "source-instead"),
        ({"a": "nowhere"}, "source-not-locked"),
    ],
)
def test_what_leads_nowhere_is_refused(tmp_path: Path, instead: dict[str, str], reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lock(tmp_path, **instead)
    assert caught.value.reason == reason
