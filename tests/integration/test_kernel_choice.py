"""Which kernel 'auto' leads to, with the real apt on archives of our own: old lists, no lists, no network."""

from __future__ import annotations

import email.utils
import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from buildsys import apt
from buildsys.apt import MAX_AGE, RETRY_AFTER, Index
from buildsys.events import Event, Note
from buildsys.fetch import Fetcher
from buildsys.files import exclusive
from buildsys.graph import FromSource
from buildsys.kernelsource import Chooser, KernelChoice
from buildsys.lock import Lock, Source
from buildsys.run import run
from common.errors import FetchError

pytestmark = pytest.mark.integration
LINE = "linux-source-6.12"
PIN = Source.model_validate({"name": "linux", "version": "6.6.8", "sha256": "0" * 64, "file": "linux-6.6.8.tar.xz"})
NOW = int(time.time()) - 1000
OLD = 1_750_000_000  # 2025-06-15, when the host last refreshed its lists


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; `server.down` are the beginnings of paths that fail."""

    server: Server

    def do_GET(self) -> None:
        if self.path.startswith(tuple(self.server.down)):
            self.send_error(503)
        else:
            super().do_GET()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """An archive on the loopback address."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
        self.down: list[str] = []


@dataclass
class Archive:
    """A distribution's archive, and a host whose apt is configured for it."""

    folder: Path
    server: Server
    publications: int = 0

    @property
    def site(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/debian"

    def pool(self, package: str, version: str) -> str:
        return f"pool/main/l/linux/{package}_{version}_all.deb"

    def body(self, package: str, version: str) -> bytes:
        return f"{package} {version}\n".encode() * 1000

    def offer(self, *packages: tuple[str, str], made: float | None = None) -> None:
        """Publish an index of exactly these, in this order, and their files. made: what it says it was made at."""
        self.publications += 1  # each one a second after the other, for If-Modified-Since
        records = []
        for package, version in packages:
            path, body = self.pool(package, version), self.body(package, version)
            file = self.folder / "debian" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(body)
            sha = hashlib.sha256(body).hexdigest()
            records.append(
                f"Package: {package}\nVersion: {version}\nArchitecture: all\nMaintainer: nobody <nobody@example>\n"
                f"Description: a kernel\n of some length\nFilename: {path}\nSize: {len(body)}\nSHA256: {sha}\n"
            )
        index = "\n".join(records).encode()
        suite = self.folder / "debian/dists/stable"
        (suite / "main/binary-amd64").mkdir(parents=True, exist_ok=True)
        (suite / "main/binary-amd64/Packages").write_bytes(index)
        entry = f" {hashlib.sha256(index).hexdigest()} {len(index)} main/binary-amd64/Packages\n"
        head = "Suite: stable\nCodename: stable\nComponents: main\nArchitectures: amd64\n"
        moment = NOW + self.publications if made is None else made
        date = f"Date: {email.utils.formatdate(moment, usegmt=True).replace('GMT', 'UTC')}\n"
        (suite / "Release").write_text(f"{head}{date}SHA256:\n{entry}")
        os.utime(suite / "Release", (NOW + self.publications,) * 2)

    def host_refreshes(self) -> None:
        """What `apt-get update` by the host's owner does."""
        run(["apt-get", "update"], inherit=("APT_CONFIG",), timeout=60)

    def configure(self, more: str) -> None:
        """Add lines to the host's configuration of apt."""
        with (self.folder / "apt.conf").open("a") as file:
            file.write(more)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    folder = tmp_path / "an archive"
    folder.mkdir()
    (folder / "host-lists/partial").mkdir(parents=True)
    with Server(folder) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made = Archive(folder, server)
        (folder / "sources.list").write_text(f"deb [trusted=yes] {made.site} stable main\n")
        (folder / "apt.conf").write_text(
            f'Dir::Etc::sourcelist "{folder}/sources.list";\nDir::Etc::sourceparts "-";\n'
            f'Dir::State::Lists "{folder}/host-lists";\nAPT::Architecture "amd64";\n'
            f"APT::Update::Post-Invoke {{ \"echo >>'{folder}/hook'\"; }};\n"
            'APT::Architectures { "amd64"; };\nAPT::Sandbox::User "root";\n'
            'Acquire::http::Proxy::127.0.0.1 "DIRECT";\nDir::Cache::pkgcache "";\nDir::Cache::srcpkgcache "";\n'
        )
        monkeypatch.setenv("APT_CONFIG", str(folder / "apt.conf"))
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        yield made
        server.shutdown()


@dataclass
class Machine:
    """A checkout's cache and what its builds said."""

    cache: Path
    locked: Source | None = None
    notes: list[str] = field(default_factory=list)

    def sink(self, event: Event) -> None:
        if isinstance(event, Note):
            self.notes.append(event.text)

    def chooser(self, offline: bool = False) -> Chooser:
        sources = {source.name: source for source in (PIN, self.locked) if source is not None}
        fetcher = Fetcher(self.cache / "distfiles", self.sink, offline=offline, backoff=0.0)
        index = Index(self.cache / "apt", self.sink, offline)
        lock = Lock(self.cache / "sources.lock", sources)
        return Chooser(self.cache, lock, fetcher, index, self.cache / "choice.json")

    def choose(self, offline: bool = False) -> str:
        """The version of the kernel that 'auto' leads to."""
        self.notes.clear()
        choice, value, lock = self.chooser(offline).choose("auto")
        assert isinstance(choice, KernelChoice)
        assert isinstance(value, FromSource)
        source = lock[value.source]
        assert choice.fallback
        assert choice.source == source.file
        assert (self.cache / "distfiles" / source.sha256).is_file()
        return source.version

    def age(self, seconds: float) -> None:
        """Let that much time pass since the lists were refreshed."""
        stamp = self.cache / "apt/refreshed.json"
        content = json.loads(stamp.read_bytes())
        stamp.write_text(json.dumps(content | {"due": content["due"] - seconds}))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    cache = tmp_path / "a cache"
    cache.mkdir()
    return Machine(cache)


def snapshot(folder: Path) -> dict[str, Any]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# case: B1
def test_old_lists_of_the_host_do_not_decide(archive: Archive, machine: Machine) -> None:
    archive.offer(("linux-source-6.1", "6.1.176-1"), made=OLD)
    archive.host_refreshes()
    (archive.folder / "hook").unlink()
    before = snapshot(archive.folder / "host-lists")
    archive.offer(
        ("linux-source-6.1", "6.1.192-3"), (LINE, "6.12.9-1"), (LINE, "6.12.117-1~deb12u1"), (LINE, "6.12.10-1")
    )
    assert machine.choose() == "6.12.117-1~deb12u1"
    assert snapshot(archive.folder / "host-lists") == before
    assert not (archive.folder / "hook").exists()  # the host's hooks are for the host's lists


# case: B1
def test_a_host_without_lists(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    assert apt.sites() == [archive.site]
    assert machine.choose() == "6.12.1-1"


# case: B1
def test_the_choice_holds_until_a_newer_version_is_known(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    assert machine.choose() == "6.12.1-1"
    archive.offer((LINE, "6.12.2-1"), (LINE, "6.12.1-1"))
    assert machine.choose() == "6.12.1-1"
    assert "6.12.1-1" in machine.chooser(offline=True).outlook("auto")
    machine.age(MAX_AGE)
    assert machine.choose(offline=True) == "6.12.1-1"
    assert machine.choose() == "6.12.2-1"
    assert machine.choose(offline=True) == "6.12.2-1"


def test_what_was_offered_and_is_gone_stays_chosen(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    assert machine.choose() == "6.12.1-1"
    archive.offer(("linux-source-6.1", "6.1.192-3"))
    machine.age(MAX_AGE)
    assert machine.choose() == "6.12.1-1"


# case: B1
def test_another_source_of_apt_is_asked_at_once(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    sources = archive.folder / "sources.list"
    right = sources.read_text()
    sources.write_text("")
    with pytest.raises(FetchError) as caught:
        machine.choose()
    assert caught.value.reason == "kernel-source-unavailable"
    assert LINE in caught.value.message
    sources.write_text(right)
    assert machine.choose() == "6.12.1-1"


# case: B1
def test_without_network_the_best_that_is_known_is_used_and_said(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"), made=OLD)
    archive.host_refreshes()
    archive.offer((LINE, "6.12.2-1"), (LINE, "6.12.1-1"))
    archive.server.down.append("/debian/dists/")
    assert machine.choose() == "6.12.1-1"
    assert any("2025-06-15" in note and "could not be refreshed" in note for note in machine.notes)
    archive.server.down.clear()
    assert machine.choose() == "6.12.1-1"  # it was tried a moment ago
    machine.age(RETRY_AFTER)
    assert machine.choose() == "6.12.2-1"


def test_the_hosts_lists_are_taken_over_when_they_are_newer(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    assert machine.choose() == "6.12.1-1"
    archive.offer((LINE, "6.12.2-1"))
    archive.host_refreshes()
    archive.server.down.append("/debian/dists/")
    assert machine.choose() == "6.12.2-1"


def test_nothing_known_and_no_network(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    archive.server.down.append("/")
    with pytest.raises(FetchError) as caught:
        machine.choose()
    assert caught.value.reason == "kernel-source-unavailable"
    assert any("nothing is known" in note for note in machine.notes)
    archive.server.down.clear()
    machine.chooser().forget()
    assert machine.choose() == "6.12.1-1"


def test_offline_asks_nobody(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    archive.host_refreshes()
    archive.server.down.append("/")
    with pytest.raises(FetchError) as caught:
        machine.choose(offline=True)
    assert caught.value.reason == "fetch-offline"
    assert [note for note in machine.notes if "--offline" not in note] == []


# case: B1, B23
def test_the_locked_fallback_comes_first(archive: Archive, machine: Machine) -> None:
    """Two machines build the same kernel, whatever their mirrors offer by now; no list is needed for it."""
    old = ("linux-source-6.12", "6.12.1-1")
    archive.offer(old, (LINE, "6.12.2-1"))
    machine.locked = Source.model_validate(
        {
            "name": "linux-fallback",
            "version": "6.12.1-1",
            "sha256": hashlib.sha256(archive.body(*old)).hexdigest(),
            "file": "linux-source-6.12_6.12.1-1_all.deb",
            "pool": archive.pool(*old),
        }
    )
    archive.server.down.append("/debian/dists/")
    assert machine.choose() == "6.12.1-1"
    assert machine.choose() == "6.12.1-1"
    assert machine.choose(offline=True) == "6.12.1-1"
    assert not any("not the fallback" in note for note in machine.notes)


def test_a_locked_fallback_that_is_gone_is_replaced_loudly(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.2-1"))
    gone = {"name": "linux-fallback", "version": "6.12.1-1", "sha256": "1" * 64, "file": "a.deb", "pool": "pool/a.deb"}
    machine.locked = Source.model_validate(gone)
    assert machine.choose() == "6.12.2-1"
    assert any("not the fallback that this version was tested with" in note for note in machine.notes)
    machine.locked = machine.locked.model_copy(update={"sha256": "2" * 64})  # the checkout moved to another one
    assert machine.chooser(offline=True).outlook("auto").startswith("not chosen yet")


def test_an_archive_that_nobody_signed_is_not_believed(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    sources = archive.folder / "sources.list"
    sources.write_text(sources.read_text().replace("[trusted=yes] ", ""))
    with pytest.raises(FetchError):
        machine.choose()


def test_a_package_that_is_not_what_the_index_says(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    (archive.folder / "debian" / archive.pool(LINE, "6.12.1-1")).write_bytes(archive.body(LINE, "6.12.1-2"))
    with pytest.raises(FetchError) as caught:
        machine.choose()
    assert caught.value.reason == "kernel-source-unavailable"
    assert [path for path in (machine.cache / "distfiles").iterdir() if path.suffix == ""] == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pin": 1}', b'{"pin": "' + b"0" * 64 + b'", "locked": null}'])
def test_a_record_that_is_damaged_is_made_anew(archive: Archive, machine: Machine, content: bytes) -> None:
    archive.offer((LINE, "6.12.1-1"))
    (machine.cache / "choice.json").write_bytes(content)
    assert machine.choose() == "6.12.1-1"


# -- what an archive, a mirror or a neighbour may do ------------------------------------------------------------------


def test_an_older_index_that_looks_new_is_not_believed(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.2-1"))
    archive.host_refreshes()
    archive.offer((LINE, "6.12.1-1"), made=OLD)
    assert machine.choose() == "6.12.2-1"


def test_what_is_older_does_not_replace_what_was_chosen(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.2-1"))
    assert machine.choose() == "6.12.2-1"
    archive.offer((LINE, "6.12.1-1"))
    machine.age(MAX_AGE)
    assert machine.choose() == "6.12.2-1"


def locked(version: str, pool: str = "pool/gone.deb", sha: str = "1" * 64) -> Source:
    file = f"linux-source-6.12_{version}_all.deb"
    return Source.model_validate(
        {"name": "linux-fallback", "version": version, "sha256": sha, "file": file, "pool": pool}
    )


# case: B23
def test_nothing_older_than_the_locked_fallback_is_taken(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    machine.locked = locked("6.12.2-1")
    with pytest.raises(FetchError) as caught:
        machine.choose()
    assert "older than 6.12.2-1" in caught.value.message


def test_a_package_whose_name_only_looks_like_it_is_not_taken(archive: Archive, machine: Machine) -> None:
    archive.offer(("linux-source-6.12-evil", "6.12.9-1"), ("linux-source-6x12", "6.12.9-1"))
    with pytest.raises(FetchError) as caught:
        machine.choose()
    assert caught.value.reason == "kernel-source-unavailable"
    archive.offer(("linux-source-6.12-evil", "6.12.9-1"), (LINE, "6.12.1-1"))
    machine.age(MAX_AGE)
    assert machine.choose() == "6.12.1-1"


def test_what_the_host_pins_away_or_has_installed(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.2-1"), (LINE, "6.12.1-1"))
    (archive.folder / "preferences").write_text(f"Package: {LINE}\nPin: version 6.12.2-1\nPin-Priority: -1\n")
    (archive.folder / "status").write_text(
        f"Package: {LINE}\nStatus: install ok installed\nVersion: 6.12.9-1\nArchitecture: all\nMaintainer: x\n"
        "Description: x\n\n"
    )
    archive.configure(
        f'Dir::Etc::preferences "{archive.folder}/preferences";\nDir::State::status "{archive.folder}/status";\n'
    )
    assert machine.choose() == "6.12.1-1"


@pytest.mark.parametrize("name", ["busybox", "linux", "linux-fallback"])
def test_a_record_stands_for_no_other_source(archive: Archive, machine: Machine, name: str) -> None:
    archive.offer((LINE, "6.12.1-1"))
    assert machine.choose() == "6.12.1-1"
    record = machine.cache / "choice.json"
    content = json.loads(record.read_bytes())
    content["chosen"]["name"] = name
    record.write_text(json.dumps(content))
    assert machine.choose() == "6.12.1-1"
    assert json.loads(record.read_bytes())["chosen"]["name"] == LINE
    record.write_text("[" * 20_000)
    assert machine.choose() == "6.12.1-1"


@pytest.mark.parametrize("more", ["Acquire::AllowInsecureRepositories", "APT::Get::AllowUnauthenticated"])
def test_a_host_that_allows_unsigned_archives_does_not_for_us(archive: Archive, machine: Machine, more: str) -> None:
    archive.offer((LINE, "6.12.1-1"))
    sources = archive.folder / "sources.list"
    sources.write_text(sources.read_text().replace("[trusted=yes] ", ""))
    archive.configure(f'{more} "true";\n')
    with pytest.raises(FetchError):
        machine.choose()


def test_mirrors_that_moved_on_are_asked_again_at_once(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    machine.chooser().index.newest(LINE)
    (archive.folder / "debian" / archive.pool(LINE, "6.12.1-1")).unlink()
    archive.offer((LINE, "6.12.2-1"))
    assert machine.choose() == "6.12.2-1"


def test_a_newer_version_that_cannot_be_had_leaves_the_older_one(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    assert machine.choose() == "6.12.1-1"
    archive.offer((LINE, "6.12.2-1"))
    (archive.folder / "debian" / archive.pool(LINE, "6.12.2-1")).unlink()
    machine.age(MAX_AGE)
    assert machine.choose() == "6.12.1-1"
    assert any("is used again" in note for note in machine.notes)


def test_an_archive_that_does_not_answer_leaves_what_the_host_knows_of_it(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"), made=OLD)
    archive.host_refreshes()
    other = Archive(archive.folder / "other", archive.server)
    other.folder.mkdir()
    other.offer(("unrelated", "1"))
    sources = archive.folder / "sources.list"
    sources.write_text(
        sources.read_text() + f"deb [trusted=yes] {archive.site.replace('debian', 'other/debian')} stable main\n"
    )
    archive.server.down.append("/debian/dists/")
    assert machine.choose() == "6.12.1-1"
    assert any("could not be refreshed" in note for note in machine.notes)


@pytest.mark.parametrize("damage", [b"\0" * 4096, b"Package: x\nVersion"])
def test_lists_that_are_damaged_are_made_anew(archive: Archive, machine: Machine, damage: bytes) -> None:
    archive.offer((LINE, "6.12.1-1"))
    machine.chooser().index.newest(LINE)
    for path in (machine.cache / "apt/lists").glob("*Packages*"):
        path.write_bytes(damage)
    assert machine.choose() == "6.12.1-1"


def test_what_could_not_be_had_offline_is_tried_with_network(archive: Archive, machine: Machine) -> None:
    body = archive.body(LINE, "6.12.1-1")
    archive.offer((LINE, "6.12.1-1"))
    machine.locked = locked("6.12.1-1", archive.pool(LINE, "6.12.1-1"), hashlib.sha256(body).hexdigest())
    machine.chooser().fetcher.get(machine.locked)
    assert machine.choose(offline=True) == "6.12.1-1"
    assert not (machine.cache / "choice.json").exists()


def test_a_mirror_that_only_apt_reaches(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    sources = archive.folder / "sources.list"
    escaped = str(archive.folder).replace(" ", "%20")
    sources.write_text(f"deb [trusted=yes] file:{escaped}/debian stable main\n")
    archive.server.down.append("/")
    assert machine.choose() == "6.12.1-1"
    body = archive.body(LINE, "6.12.1-1")
    fresh = Machine(
        machine.cache / "fresh", locked("6.12.1-1", archive.pool(LINE, "6.12.1-1"), hashlib.sha256(body).hexdigest())
    )
    fresh.cache.mkdir()
    assert fresh.choose() == "6.12.1-1"


def test_several_builds_at_once(archive: Archive, tmp_path: Path) -> None:
    archive.offer((LINE, "6.12.1-1"))
    shared = tmp_path / "shared"
    machines = [Machine(tmp_path / name) for name in ("one", "one", "two", "three")]
    found: list[str] = []
    for one in machines:
        one.cache.mkdir(exist_ok=True)
        if not (one.cache / "distfiles").exists():
            shared.mkdir(exist_ok=True)
            (one.cache / "distfiles").symlink_to(shared)
    threads = [threading.Thread(target=lambda one=one: found.append(one.choose())) for one in machines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert found == ["6.12.1-1"] * 4
    assert [path.suffix for path in shared.iterdir() if not path.name.startswith(".")] == [""]


# case: B15
def test_secrets_of_apts_configuration_stay_there(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    sources = archive.folder / "sources.list"
    sources.write_text(sources.read_text().replace("://", "://me:s3cret@"))
    assert machine.choose() == "6.12.1-1"
    assert "s3cret" not in repr(machine.notes)
    kept = b"".join(path.read_bytes() for path in machine.cache.rglob("*") if path.is_file())
    assert b"s3cret" not in kept


def test_the_outlook_asks_and_waits_for_nobody(archive: Archive, machine: Machine) -> None:
    archive.offer((LINE, "6.12.1-1"))
    assert machine.choose() == "6.12.1-1"
    machine.age(MAX_AGE)
    archive.server.down.append("/")
    with exclusive(machine.cache / "apt/lock", lambda: pytest.fail("somebody has it")):
        assert machine.chooser(offline=True).outlook("auto").startswith("linux-source-6.12_6.12.1-1_all.deb, because")
    (machine.cache / "apt/apt.conf").write_text("{")
    assert machine.chooser(offline=True).outlook("auto").startswith("linux-source-6.12_6.12.1-1_all.deb, because")
