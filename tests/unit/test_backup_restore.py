"""What goes into a backup, what may come out of one, and a restore that is cut off at every step."""

from __future__ import annotations

import json
import os

import pytest

from common.errors import MixosError
from daemon.core.change import files
from daemon.core.change.files import Trees
from daemon.core.part import Context
from daemon.parts.backup import archive, contents
from daemon.parts.backup.archive import Entry
from daemon.parts.backup.contents import MANIFEST
from daemon.parts.backup.migrate import migrate
from daemon.parts.backup.part import manifest_now
from daemon.parts.backup.restore import services_to_restart
from tests.backups import STATE, backup, device, pieces, prepared, restore, restorer, snapshot, write


class PowerCutError(BaseException):
    """Stops everything, cleaning up included."""


@pytest.fixture(autouse=True)
def _no_sync(monkeypatch):
    """Nothing here loses power; writing back the whole host's files again and again would take minutes."""
    monkeypatch.setattr(os, "sync", lambda: None)


def names(data: bytes) -> list[str]:
    return [entry.path for entry, _ in archive.read(pieces(data))]


def test_what_is_kept(tmp_path):
    trees = device(tmp_path)
    found = names(backup(trees, state=STATE))
    assert found[0] == MANIFEST
    assert {"etc/hostname", "etc/mixos/units/web.toml", "etc/ssh/ssh_host_ed25519_key"} <= set(found)
    assert {"var/lib/mixos/vpn/wg0.key", "var/lib/mixos/firewall.json", "var/lib/web/db/data"} <= set(found)
    assert not {"etc/passwd", "var/lib/mixos/idempotency/1", "var/lib/mixos/changes/net.good"} & set(found)
    assert len(found) == len(set(found))


def test_without_secrets(tmp_path):
    trees = device(tmp_path)
    left = set(names(backup(trees))) - set(names(backup(trees, secrets=False)))
    assert left == {
        "etc/mixos/proxy.secret.toml",
        "etc/ssh/ssh_host_ed25519_key",
        "etc/ssh/ssh_host_ed25519_key.fingerprint",
        "etc/ssh/ssh_host_ed25519_key.pub",
        "var/lib/mixos/config/revisions.jsonl",
        "var/lib/mixos/vpn/wg0.key",
    }
    target = device(tmp_path / "other", "two")
    plan = restorer(target).prepare(pieces(backup(trees, secrets=False)))
    assert not [one for one in plan.changes if one.kind == "gone"]  # the target's own secrets stay
    assert not [one.name for one in plan.changes if "host" in one.name and "ssh" in one.name]  # nor half of a key


def test_a_hostile_unit_gets_nothing_in(tmp_path):
    trees = device(tmp_path)
    (trees.lib / "web/out").symlink_to("/etc/shadow")
    (trees.lib / "web/up").symlink_to("../mixos")
    os.mkfifo(trees.lib / "web/pipe")
    (trees.lib / "web/db/elsewhere").symlink_to(tmp_path)
    left: list[str] = []
    kept = [entry.path for entry, _ in contents.scan_state(trees, "web", left)]
    assert left == ["var/lib/web/pipe"]
    links = ("/current", "/db/elsewhere", "/out", "/up")  # kept as links
    assert sorted(kept) == sorted(f"var/lib/web{name}" for name in ("", *links, "/db", "/db/data"))


# case: D8
# case: D9
# case: D10
def test_what_a_unit_keeps_comes_back_whatever_it_is(tmp_path):
    """Links to anywhere, long names, holes; what cannot be kept is told and hinders nothing else."""
    old = device(tmp_path / "a")
    (old.lib / "web/wal").symlink_to("/data/elsewhere")
    (old.lib / "web/up").symlink_to("../mixos")
    write(old.lib / "web" / ("n" * 120), "long")
    with (old.lib / "web/holes").open("wb") as stream:
        stream.truncate(64 << 20)
        stream.seek(32 << 20)
        stream.write(b"here")
    deep = old.lib / "web" / "/".join(["d" * 200] * 5)
    write(deep / ("x" * 200), "beyond the limit")
    before = {name: value for name, value in snapshot(old).items() if name.startswith("lib/web")}
    restore(old, backup(old, state=STATE))
    wanted = {name: value for name, value in before.items() if "x" * 200 not in name}
    assert {name: value for name, value in snapshot(old).items() if name.startswith("lib/web")} == wanted
    holes = (old.lib / "web/holes").stat()
    assert holes.st_size == 64 << 20
    assert holes.st_blocks * 512 < 1 << 20


def test_an_archive_never_writes_through_its_links(tmp_path):
    trees = device(tmp_path)
    link = Entry("var/lib/web/x", "link", 0o777, target="/etc")
    through = Entry("var/lib/web/x/passwd", "file", 0o644)
    assert hostile(trees, (ROOT, b""), (link, b""), (through, b""), state=STATE) == "backup-name"


# case: D10
@pytest.mark.parametrize(
    "parts", [[], [(0, b"a")], [(5 << 30, b"b" * 300_000)], [(0, b"a"), (3 << 30, b"b"), (9 << 30, b"\0" * 5000)]]
)
def test_holes_larger_than_a_backup(tmp_path, parts):
    old = device(tmp_path / "a")
    (old.lib / "web/db/data").unlink()
    with (old.lib / "web/holes").open("wb") as stream:
        stream.truncate((9 << 30) + 5000)
        for at, data in parts:
            stream.seek(at)
            stream.write(data)
    data = backup(old, state=STATE)
    (old.lib / "web/holes").unlink()
    restore(old, data)
    holes = old.lib / "web/holes"
    assert holes.stat().st_size == (9 << 30) + 5000
    assert holes.stat().st_blocks * 512 < 1 << 20
    with holes.open("rb") as stream:
        for at, piece in parts:
            stream.seek(at)
            assert stream.read(len(piece)) == piece
        assert os.lseek(stream.fileno(), 1 << 30, os.SEEK_HOLE) == 1 << 30


# case: D10
def test_a_file_with_more_holes_than_can_be_kept_is_kept_without_them(tmp_path):
    old = device(tmp_path / "a")
    with (old.lib / "web/holes").open("wb") as stream:
        for number in range(1100):
            stream.seek(number << 13)
            stream.write(b"x")
    before = (old.lib / "web/holes").read_bytes()
    data = backup(old, state=STATE)
    (old.lib / "web/holes").unlink()
    restore(old, data)
    assert (old.lib / "web/holes").read_bytes() == before


def test_only_what_a_unit_keeps_has_holes(tmp_path):
    hole = Entry("etc/hostname", "file", 0o644, length=1 << 40)
    assert hostile(device(tmp_path), (hole, b"")) == "backup-name"


# case: H11
def test_names_too_long_or_too_deep_keep_the_rest_of_a_unit_in_a_backup(tmp_path):
    trees = device(tmp_path)
    at = os.open(trees.lib / "web/db", os.O_RDONLY)
    for name in ["x" * 255] * 4 + ["d"] * 1500:
        os.mkdir(name, dir_fd=at)
        inner = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    (trees.lib / ("web/a" + "/b" * 120)).mkdir(parents=True)
    try:
        left: list[str] = []
        kept = [entry.path for entry, _ in contents.scan_state(trees, "web", left)]
        assert "var/lib/web/db/data" in kept
        assert left == ["var/lib/web/a" + "/b" * 99, "/".join(["var/lib/web/db", *["x" * 255] * 4])]
        assert backup(trees, state=STATE)
    finally:
        files.remove(trees.lib / "web")  # not even pytest could


def test_a_restore_makes_it_what_it_was(tmp_path):
    old, new = device(tmp_path / "a"), device(tmp_path / "b", "two")
    write(new.etc / "mixos/units/later.toml", "x")
    write(new.lib / "web/later", "x")
    plan = restore(new, backup(old, state=STATE))
    kept = ("lib/mixos/idempotency", "lib/mixos/changes", "etc/passwd", "lib/mixos/backup")
    wanted = {name: value for name, value in snapshot(old).items() if not name.startswith(kept)}
    assert {name: value for name, value in snapshot(new).items() if not name.startswith(kept)} == wanted
    assert (new.lib / "mixos/idempotency/1").read_text() == "idempotency/1 two"
    assert services_to_restart(plan) == (["web"], True)
    again = restorer(new).prepare(pieces(backup(old)))
    assert again.changes == []


def test_only_some_sections(tmp_path):
    old, new = device(tmp_path / "a"), device(tmp_path / "b", "two")
    plan = restore(new, backup(old), ["units"])
    assert [one.name for one in plan.changes] == ["etc/mixos/units/web.toml"]
    assert services_to_restart(plan) == ([], False)
    assert (new.etc / "hostname").read_text() == "hostname two\n"
    with pytest.raises(MixosError) as caught:
        restorer(new).prepare(pieces(backup(old)), ["state"])
    assert caught.value.reason == "backup-section"


def test_a_failing_rename_takes_everything_back(tmp_path):
    every: list[str] = []
    trees, data, _ = prepared(tmp_path / "steps")
    restore(trees, data, step=every.append)
    assert len(every) > 20
    for number in range(len(every)):
        trees, data, before = prepared(tmp_path / str(number))
        count = iter(range(number + 1))

        def step(_: str) -> None:
            if next(count) == number:  # noqa: B023
                raise OSError(5, "Input/output error")

        restore(trees, data, step=step)
        assert snapshot(trees) == before, every[number]


@pytest.mark.parametrize(("state", "outcome"), [("doing", "finished"), ("undoing", "undone")])
def test_a_restore_that_version_0_1_was_cut_off_in(tmp_path, state, outcome):
    wanted, data, _ = prepared(tmp_path / "wanted")
    restore(wanted, data)
    trees, data, before = prepared(tmp_path / "cut")
    renames = restorer(trees).prepare(pieces(data)).renames()
    count = iter(range(7))

    def cut(_: str) -> None:
        if next(count, None) is None:
            raise PowerCutError

    with pytest.raises(PowerCutError):
        files.do(renames, cut)
    context = Context(state=trees.lib / "mixos", etc=trees.etc / "mixos")
    document = {"state": state, "who": "me", **renames.document()}
    (trees.lib / "mixos/backup/journal.json").write_text(json.dumps(document))
    assert migrate(context) == outcome
    files.clean(renames)
    assert snapshot(trees) == (snapshot(wanted) if outcome == "finished" else before)
    assert migrate(context) is None


def test_whatever_is_wrong_changes_nothing(tmp_path):
    trees, data, before = prepared(tmp_path)
    for broken in (data[:-1], data[: len(data) // 2], data[:-20] + b"x" * 20, b"", b"MIXOSBK\n\0\2"):
        with pytest.raises(MixosError):
            restorer(trees).prepare(pieces(broken))
        assert snapshot(trees) == before


def test_what_is_in_the_way(tmp_path):
    trees, data, _ = prepared(tmp_path)
    (trees.etc / "hostname").unlink()
    write(trees.etc / "hostname/file", "x")
    with pytest.raises(MixosError) as caught:
        restorer(trees).prepare(pieces(data))
    assert caught.value.reason == "backup-conflict"


def hostile(trees: Trees, *items: tuple[Entry, bytes], state: dict[str, str] | None = None, text: bytes = b"") -> str:
    """The reason with which a backup that holds `items` is refused."""
    manifest = text or manifest_now(True, state or {}).model_dump_json(by_alias=True).encode()
    front = Entry(MANIFEST, "file", 0o600, size=len(manifest)), manifest
    data = b"".join(archive.write((entry, iter([content])) for entry, content in (front, *items)))
    before = snapshot(trees)
    with pytest.raises(MixosError) as caught:
        restorer(trees).prepare(iter([data]))
    assert snapshot(trees) == before
    return caught.value.reason


ROOT = Entry("var/lib/web", "folder", 0o755)


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        (Entry("etc/passwd", "file", 0o644), "backup-name"),
        # What a start would carry out.
        (Entry("var/lib/mixos/config/undo.json", "file", 0o600), "backup-name"),
        (Entry("var/lib/mixos/firewall/committed.json", "file", 0o600), "backup-name"),
        (Entry("var/lib/mixos/firewall/pending.json", "file", 0o600), "backup-name"),
        (Entry("var/lib/mixos/net/trial.json", "file", 0o600), "backup-name"),
        (Entry("var/lib/mixos/changes/00000001.json", "file", 0o600), "backup-name"),
        (Entry("etc/hostname/../passwd", "file", 0o644), "backup-name"),
        (Entry("usr/bin/sh", "file", 0o755), "backup-name"),
        (Entry("var/lib/mixos", "file", 0o644), "backup-conflict"),
        (Entry("var/lib/mixos/backup/journal.json", "file", 0o644), "backup-name"),
        (Entry("var/lib/mixos/config/.x.new", "file", 0o644), "backup-name"),
        (Entry("etc/mixos/a", "link", 0o777, target="b"), "backup-name"),
        (Entry("etc/mixos/a", "folder", 0o777), "backup-name"),
        (Entry("var/lib/other/x", "file", 0o644), "backup-name"),
        (Entry("var/lib/web/sub/x", "file", 0o644), "backup-name"),
    ],
)
def test_names_that_have_no_place_in_a_backup(tmp_path, entry, wanted):
    assert hostile(device(tmp_path), (ROOT, b""), (entry, b""), state=STATE) == wanted


def test_manifests_that_are_refused(tmp_path):
    trees = device(tmp_path)
    good = manifest_now(True, {}).model_dump(mode="json", by_alias=True)

    def text(**changes: object) -> bytes:
        import json

        return json.dumps({**good, **changes}).encode()

    assert hostile(trees, text=text(format=2)) == "backup-too-new"
    assert hostile(trees, text=text(format=99, new="key")) == "backup-too-new"
    assert hostile(trees, text=text(other=1)) == "backup-manifest"
    for moment in (-1, 1 << 33, 10**30):
        assert hostile(trees, text=text(created=moment)) == "backup-manifest"
    assert hostile(trees, text=b"{" * 3000) == "backup-manifest"
    assert hostile(trees, text=b" " * (65 << 10)) == "backup-manifest"
    assert hostile(trees, text=text(sections=["settings", "logs"])) == "backup-manifest"
    for folder in ("mixos", "../x", "a/b", ".x", ""):
        assert hostile(trees, text=text(sections=["state"], state={"web": folder})) == "backup-manifest"
    assert hostile(trees, text=text(state={"web": "web"})) == "backup-manifest"
    assert hostile(trees, (Entry("etc/hostname", "file", 0o644), b""), text=text(sections=["ssh"])) == "backup-name"


def test_no_space(tmp_path, monkeypatch):
    trees, data, before = prepared(tmp_path)
    real = os.statvfs

    class Full:
        f_bavail, f_frsize = 4096, 4096  # all of it is reserve

    monkeypatch.setattr(os, "statvfs", lambda path: Full if path == trees.lib else real(path))
    with pytest.raises(MixosError) as caught:
        restorer(trees).prepare(pieces(data))
    assert caught.value.reason == "backup-no-space"
    assert snapshot(trees) == before


def test_owner_mode_and_time_come_back(tmp_path):
    old, new = device(tmp_path / "a"), device(tmp_path / "b", "two")
    path = old.lib / "web/db/data"
    os.utime(path, (1, 1_000_000))
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    path.chmod(0o640)
    restore(new, backup(old, state=STATE))
    one, two = path.stat(), (new.lib / "web/db/data").stat()
    assert (one.st_uid, one.st_gid, one.st_mode, int(one.st_mtime)) == (two.st_uid, two.st_gid, two.st_mode, 1_000_000)
