"""The data of a device under one release after the other: migrations, merged defaults, the way back, kills."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.accounts import ACCOUNTS
from common.errors import ConfigError, MixosError
from common.settings.model import Settings, Update
from common.settings.render import render
from daemon import handover
from daemon.core.change import files
from daemon.core.change.files import Step, Trees
from daemon.core.change.record import Record
from daemon.core.part import Context
from daemon.core.release import defaults
from daemon.core.release.ledger import MAX_STEPS, load
from daemon.core.release.switch import LEVEL, Device, Migration, Outcome, Release, prepare_back, take_over
from daemon.core.release.tree import Tree
from tests.kills import killed

STATE = "var/lib/mixos/web.json"
SSHD = "etc/ssh/sshd_config"
ONE = {SSHD: "Port 22\nUseDNS no\nLogLevel INFO\n", "etc/profile": "umask 022\n", "etc/hostname": "mixos\n"}
TWO = {SSHD: "Port 22\nUseDNS no\nLogLevel VERBOSE\nCompression no\n", "etc/profile": "umask 027\n"}


def rename_key(old: str, new: str) -> Any:
    """A change of the shape of a file of state, and of one that people write."""

    def work(tree: Tree) -> None:
        for name in tree.names("var/lib/mixos"):
            if name == STATE:
                data = json.loads(tree.read(name) or b"{}")
                data[new] = data.pop(old, None)
                tree.write(name, json.dumps(data).encode())
        text = tree.read("etc/mixos/web.toml")
        if text is not None:
            tree.write("etc/mixos/web.toml", text.replace(old.encode(), new.encode()))

    return work


INFINITE = '1 one\n{"release": "", "version": "", "defaults": {"etc/x": ["", 1e999]}, "moves": [], "conflicts": []}'
FIRST = Migration(1, "m0001_first", rename_key("a", "b"), rename_key("b", "a"))
SECOND = Migration(2, "m0002_second", rename_key("b", "c"))


class Box:
    """A device. Its /etc is as an overlay shows it: a file that the device did not change is that of the release."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.trees = Trees(base / "etc", base / "var/lib")
        self.ledger = base / "state/ledger"
        for folder in ("etc", "var/lib/mixos", "state"):
            (base / folder).mkdir(parents=True, exist_ok=True)

    def path(self, name: str) -> Path:
        return self.trees.place(name)

    def read(self, name: str) -> str | None:
        return self.path(name).read_text() if self.path(name).exists() else None

    def write(self, name: str, text: str) -> None:
        self.path(name).parent.mkdir(parents=True, exist_ok=True)
        self.path(name).write_text(text)

    def start(
        self,
        key: str,
        brings: Mapping[str, str],
        migrations: tuple[Migration, ...] = (),
        step: Step = files.nothing,
        check: defaults.Check = lambda name, data: None,
    ) -> Outcome:
        """The first stages of a boot of this release."""
        image, shown = self.base / f"image-{key}", self.base / "shown.json"
        before = json.loads(shown.read_text()) if shown.exists() else {}
        for name, text in before.items():  # the overlay: what the device did not change is the release's
            if self.read(name) == text:
                self.path(name).unlink()
        for name, text in brings.items():
            (image / name).parent.mkdir(parents=True, exist_ok=True)
            (image / name).write_text(text)
            if self.read(name) is None:
                self.write(name, text)
        shown.write_text(json.dumps(brings))
        return take_over(self.device(step, check), Release(key, f"1.{key}", image, migrations))

    def device(self, step: Step = files.nothing, check: defaults.Check = lambda name, data: None) -> Device:
        return Device(self.ledger, self.trees, check, step)

    def state(self) -> Any:
        return json.loads(self.read(STATE) or "null")

    def left(self) -> list[str]:
        """What must not stay: files on their way."""
        return [path.name for top in ("etc", "var/lib") for path in (self.base / top).glob(".mixos*")]


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def test_a_new_device_has_nothing_to_take_over(box: Box) -> None:
    outcome = box.start("one", ONE, (FIRST,))
    assert (outcome.how, outcome.changed, outcome.newer) == ("new", (LEVEL,), False)
    assert box.read(LEVEL) == "0001\n"
    assert box.ledger.read_text().splitlines()[0] == "1 one"
    assert box.ledger.stat().st_mode & 0o777 == 0o600
    assert box.start("one", ONE, (FIRST,)).how == "same"


def test_migrations_run_once_in_order_and_are_undone_by_a_release_that_does_not_know_them(box: Box) -> None:
    box.start("one", ONE)
    box.write(STATE, '{"a": 1}')
    assert box.start("two", TWO, (SECOND, FIRST)).how == "forward"
    assert (box.state(), box.read(LEVEL)) == ({"c": 1}, "0002\n")
    assert box.start("two", TWO, (SECOND, FIRST)).how == "same"
    assert box.state() == {"c": 1}
    outcome = box.start("one", ONE)
    assert (outcome.how, outcome.version, outcome.newer) == ("back", "1.two", False)
    assert (box.state(), box.read(LEVEL)) == ({"a": 1}, None)
    assert box.start("two", TWO, (FIRST, SECOND)).how == "forward"
    assert box.state() == {"c": 1}


def test_back_over_several_releases(box: Box) -> None:
    box.start("one", ONE)
    box.write(STATE, '{"a": 1}')
    box.start("two", TWO, (FIRST,))
    box.start("three", TWO, (FIRST, SECOND))
    assert box.start("two", TWO, (FIRST,)).how == "back"
    assert box.state() == {"b": 1}
    box.start("three", TWO, (FIRST, SECOND))
    assert box.start("one", ONE).how == "back"
    assert box.state() == {"a": 1}
    ledger = load(box.ledger)
    assert ledger is not None
    assert ledger.moves == ()


def test_what_the_device_wrote_since_is_kept_beside_when_a_release_gets_its_state_back(box: Box) -> None:
    box.start("one", ONE)
    box.write(STATE, '{"a": 1}')
    box.start("two", TWO, (FIRST,))
    box.write(STATE, '{"b": 2}')
    outcome = box.start("one", ONE)
    assert box.state() == {"a": 1}
    assert outcome.conflicts == (STATE,)
    ledger = load(box.ledger)
    assert ledger is not None
    (conflict,) = ledger.conflicts
    assert (conflict.why, conflict.version, conflict.other) == ("release", "1.two", (b'{"b": 2}', 0o644))


def test_a_way_back_gives_what_would_be_by_now(box: Box) -> None:
    box.start("one", ONE)
    box.write(STATE, '{"a": 1}')
    box.start("two", TWO, (FIRST,))
    box.write(STATE, '{"b": 2}')
    release = Release("two", "1.two", box.base / "image-two", (FIRST,))
    assert prepare_back(box.device(), release)
    assert box.state() == {"b": 2}  # nothing but the ledger: it may be started again
    assert box.start("two", TWO, (FIRST,)).how == "same"
    assert box.start("one", ONE).conflicts == ()
    assert box.state() == {"a": 2}


def test_without_a_way_back_there_is_what_was_before(box: Box) -> None:
    box.start("one", ONE)
    box.write(STATE, '{"a": 1}')
    box.start("two", TWO, (FIRST, SECOND))
    assert not prepare_back(box.device(), Release("two", "", box.base / "image-two", (FIRST, SECOND)))
    assert not prepare_back(box.device(), Release("other", "", box.base / "image-two", (FIRST,)))


def test_what_people_wrote_since_goes_along_with_what_a_release_gets_back(box: Box) -> None:
    """Text below /etc is merged on the way back as well, unless the older release would refuse it."""
    box.start("one", ONE)
    box.write("etc/mixos/web.toml", "a = 1\nport = 80\n\n[log]\nlevel = 1\n")
    box.start("two", TWO, (FIRST,))
    box.write("etc/mixos/web.toml", "b = 1\nport = 80\n\n[log]\nlevel = 2\n")
    assert box.start("one", ONE).conflicts == ()
    assert box.read("etc/mixos/web.toml") == "a = 1\nport = 80\n\n[log]\nlevel = 2\n"
    box.start("two", TWO, (FIRST,))
    box.write("etc/mixos/web.toml", "b = 1\nport = 80\nnew = 1\n\n[log]\nlevel = 2\n")

    def refuse(name: str, data: bytes) -> None:
        raise ConfigError("an unknown key", reason="config-key")

    assert box.start("one", ONE, check=refuse).conflicts == ("etc/mixos/web.toml",)
    assert box.read("etc/mixos/web.toml") == "a = 1\nport = 80\n\n[log]\nlevel = 2\n"


def test_a_migration_that_fails_changes_nothing(box: Box) -> None:
    def broken(tree: Tree) -> None:
        tree.write(STATE, b"half")
        raise KeyError("a")

    box.start("one", ONE)
    box.write(STATE, '{"a": 1}')
    ledger = box.ledger.read_bytes()
    with pytest.raises(MixosError) as caught:
        box.start("two", TWO, (FIRST, Migration(2, "m0002_broken", broken)))
    assert caught.value.reason == "migration-failed"
    assert (box.state(), box.ledger.read_bytes()) == ({"a": 1}, ledger)
    assert box.start("one", ONE).how == "same"


@pytest.mark.parametrize("name", ["etc/shadow", "usr/lib/x", "var/lib/web/x", "etc/../root/x", "var/lib/mixos"])
def test_what_is_not_for_migrations(box: Box, name: str) -> None:
    with pytest.raises(MixosError) as caught:
        Tree(box.trees).write(name, b"")
    assert caught.value.reason in ("migration-name", "change-name", "migration-owner")


def test_what_is_not_roots_own_is_left(box: Box) -> None:
    box.path(STATE).symlink_to("/etc/hostname")
    with pytest.raises(MixosError) as caught:
        Tree(box.trees).read(STATE)
    assert caught.value.reason == "migration-owner"
    box.start("one", ONE)
    box.path(SSHD).unlink()
    box.path(SSHD).symlink_to("/etc/hostname")
    assert box.start("two", TWO).how == "forward"
    assert box.path(SSHD).is_symlink()


def test_a_release_without_a_way_back_says_that_the_data_are_of_a_later_one(box: Box) -> None:
    box.start("one", ONE, (FIRST, SECOND))
    outcome = box.start("zero", ONE, (FIRST,))
    assert (outcome.how, outcome.newer) == ("forward", True)
    assert box.start("zero", ONE, (FIRST,)) == Outcome("same", newer=True)


@pytest.mark.parametrize("text", ["", "one", "-1", "0" * 9])
def test_a_level_that_cannot_be_read_is_not_guessed_at(box: Box, text: str) -> None:
    """Migrations are not for data that have their shape already."""
    box.write(LEVEL, text)
    with pytest.raises(MixosError) as caught:
        box.start("one", ONE, (FIRST,))
    assert caught.value.reason == "release-level"


def test_data_of_an_older_release_out_of_a_backup_are_migrated(box: Box) -> None:
    box.start("one", ONE)
    box.write(STATE, '{"a": 1}')
    box.start("two", TWO, (FIRST,))
    box.write(STATE, '{"a": 5}')
    box.path(LEVEL).unlink()  # as it was kept
    assert box.start("two", TWO, (FIRST,)).how == "forward"
    assert box.state() == {"b": 5}
    assert box.start("one", ONE).conflicts == ()
    assert box.state() == {"a": 5}


def test_only_so_many_moves_are_kept(box: Box) -> None:
    for number in range(MAX_STEPS + 3):
        box.start(str(number), ONE)
    ledger = load(box.ledger)
    assert ledger is not None
    assert [move.release for move in ledger.moves] == [str(one) for one in range(2, MAX_STEPS + 2)]
    assert box.start("2", ONE).how == "back"
    assert box.start("0", ONE).how == "forward"


@pytest.mark.parametrize(
    "text", ["", "1 one\n", "1 one\n{", '1 one\n{"release": 1}', "1 one\n" + "[" * 100000, "x", INFINITE]
)
def test_a_damaged_ledger_is_set_aside(box: Box, text: str) -> None:
    box.ledger.write_text(text)
    assert box.start("one", ONE).how == "new"
    assert box.ledger.with_name("ledger.damaged").read_text() == text


def test_a_later_format_is_left_alone(box: Box) -> None:
    box.ledger.write_text("2 one\n{}")
    with pytest.raises(MixosError) as caught:
        box.start("one", ONE)
    assert (caught.value.reason, box.ledger.read_text()) == ("ledger-format", "2 one\n{}")


# -- defaults of /etc --------------------------------------------------------------------------------------------------


def test_what_the_device_did_not_change_is_the_new_default(box: Box) -> None:
    box.start("one", ONE)
    outcome = box.start("two", TWO)
    assert (outcome.changed, outcome.conflicts, box.read(SSHD)) == ((), (), TWO[SSHD])


def test_a_copy_of_the_old_default_does_not_hide_the_new_one(box: Box) -> None:
    box.start("one", ONE)
    (box.base / "shown.json").write_text("{}")  # all of it was written on the device, as it is
    outcome = box.start("two", TWO)
    assert outcome.changed == ("etc/hostname", "etc/profile", SSHD)
    assert (box.read(SSHD), box.read("etc/hostname")) == (TWO[SSHD], None)
    box.start("one", ONE)
    assert box.read(SSHD) == ONE[SSHD]


def test_both_changes_are_merged_and_unmerged(box: Box) -> None:
    mine = "Port 2222\nUseDNS no\nLogLevel INFO\n"
    box.start("one", ONE)
    box.write(SSHD, mine)
    assert box.start("two", TWO).changed == (SSHD,)
    assert box.read(SSHD) == "Port 2222\nUseDNS no\nLogLevel VERBOSE\nCompression no\n"
    box.write(SSHD, "Port 2222\nUseDNS yes\nLogLevel VERBOSE\nCompression no\n")
    assert box.start("one", ONE).conflicts == ()
    assert box.read(SSHD) in (mine, "Port 2222\nUseDNS yes\nLogLevel INFO\n")


@pytest.mark.parametrize("refused", [False, True])
def test_a_conflict_leaves_the_devices_file_and_is_told_until_it_is_over(box: Box, refused: bool) -> None:
    mine = "Port 2222\nUseDNS no\nLogLevel INFO\n" if refused else "Port 22\nUseDNS no\nLogLevel QUIET\n"

    def check(name: str, data: bytes) -> None:
        if refused:
            raise MixosError("no", reason="program-failed")

    box.start("one", ONE)
    box.write(SSHD, mine)
    assert box.start("two", TWO, check=check).conflicts == (SSHD,)
    assert box.read(SSHD) == mine
    ledger = load(box.ledger)
    assert ledger is not None
    (conflict,) = ledger.conflicts
    assert (conflict.why, conflict.other) == ("default", (TWO[SSHD].encode(), 0o644))
    assert box.start("one", ONE).conflicts == ()
    ledger = load(box.ledger)
    assert ledger is not None
    assert ledger.conflicts == ()


def test_a_migration_of_a_default_leaves_the_older_release_its_own(box: Box) -> None:
    """In an overlay what is gone is hidden, not as it was below."""

    def forward(tree: Tree) -> None:
        tree.write("etc/profile", (tree.read("etc/profile") or b"") + b"# migrated\n")

    box.start("one", ONE)
    box.start("two", TWO, (Migration(1, "m0001_profile", forward),))
    assert box.read("etc/profile") == "umask 027\n# migrated\n"
    box.start("one", ONE)
    assert box.read("etc/profile") == "umask 022\n"


def test_a_conflict_goes_with_the_release_that_made_it(box: Box) -> None:
    box.start("one", ONE)
    box.write("etc/profile", "umask 077\n")
    box.start("two", TWO)
    box.write("etc/hostname", "x\n")
    assert box.start("three", {**TWO, "etc/new": "1\n"}).conflicts == ()
    box.start("two", TWO)
    ledger = load(box.ledger)
    assert ledger is not None
    assert [one.name for one in ledger.conflicts] == ["etc/profile"]


def test_settings_of_the_device_are_its_own(box: Box) -> None:
    keys = "etc/ssh/authorized_keys/admin"
    box.start("one", {**ONE, keys: "vendor\n"})
    box.write("etc/hostname", "kitchen\n")
    box.write(keys, "owner\nvendor\n")
    outcome = box.start("two", {**TWO, keys: "another\nvendor\n", "etc/hostname": "other\n"})
    assert (outcome.changed, outcome.conflicts) == ((), ())
    assert (box.read(keys), box.read("etc/hostname")) == ("owner\nvendor\n", "kitchen\n")
    names = render(Settings(update=Update("https://updates.example")))
    assert len(names) > len(ACCOUNTS)
    assert all(name.startswith(defaults.SETTINGS) for name in names)


def test_what_comes_and_goes(box: Box) -> None:
    box.start("one", {**ONE, "etc/old": "1\n", "etc/gone": "1\n"})
    box.write("etc/new", "mine\n")
    box.write("etc/old", "mine\n")
    assert box.start("two", {**TWO, "etc/new": "theirs\n"}).conflicts == ("etc/new",)
    assert (box.read("etc/new"), box.read("etc/old"), box.read("etc/gone")) == ("mine\n", "mine\n", None)


def test_shadow_is_copied_nowhere(box: Box) -> None:
    box.start("one", {**ONE, "etc/shadow": "root:*:1:0:::::\n"})
    box.write("etc/shadow", "root:secret:1:0:::::\n")
    box.start("two", {**TWO, "etc/shadow": "root:*:2:0:::::\n"})
    assert box.read("etc/shadow") == "root:secret:1:0:::::\n"
    assert "secret" not in box.ledger.read_text()
    assert "root:" not in box.ledger.read_text()


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("etc/passwd", "root:x:0:0:r:/root:/bin/sh\n", "root:x:0:0:r:/root:/bin/sh\nroot:x:0:0:r:/:/bin/sh\n"),
        ("etc/group", "root:x:0:\n", "root:x:0\n"),
        ("etc/passwd", "root:x:0:0:r:/root:/bin/sh\n", "a:x:1:0:r:/root:/bin/sh\n"),
        ("etc/group", "root:x:0:\na:x:1:\n\n", "root:x:0:\na:x:86:\nb:x:086:\n"),
        ("etc/profile", "umask 022\n", "if\n"),
        ("etc/profile.d/x.sh", "true\n", "'\n"),
        ("etc/mixos/network.toml", "", "unknown = 1\n"),
        ("etc/anything", "x", ""),
    ],
)
def test_a_file_that_its_reader_refuses_is_not_made(name: str, good: str, bad: str) -> None:
    defaults.refuse_broken(name, good.encode())
    if bad:
        with pytest.raises(MixosError):
            defaults.refuse_broken(name, bad.encode())


# -- kill -9 at every step, and again at every step of what follows ----------------------------------------------------


def test_killed_while_the_data_are_taken_over_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then either release is started: it has its own shape, whole. Of the second kills, every third."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # a kill leaves what was written
    mine = "Port 2222\nUseDNS no\nLogLevel INFO\n"

    def prepared(base: Path) -> Box:
        box = Box(base)
        box.start("one", ONE)
        box.write(STATE, '{"a": 1}')
        box.write("etc/mixos/web.toml", "a = 1\n")
        box.write(SSHD, mine)
        return box

    def shape(box: Box) -> tuple[Any, ...]:
        return box.state(), box.read("etc/mixos/web.toml"), box.read(SSHD), box.read(LEVEL)

    def start(box: Box, release: str, step: Step = files.nothing) -> None:
        brings, migrations = (ONE, ()) if release == "one" else (TWO, (FIRST,))
        box.start(release, brings, migrations, step)

    old = ({"a": 1}, "a = 1\n", mine, None)
    new = ({"b": 1}, "b = 1\n", "Port 2222\nUseDNS no\nLogLevel VERBOSE\nCompression no\n", "0001\n")
    kills = 0
    for second in ("one", "two"):
        for first in range(60):
            for number in range(first % 3, 60, 3):
                box = prepared(tmp_path / "box")
                came = killed(lambda step: start(box, "two", step), first)  # noqa: B023
                again = killed(lambda step: start(box, second, step), number)  # noqa: B023
                for last, wanted in (("one", old), ("two", new)):
                    start(box, last)
                    assert shape(box) == wanted, (first, second, number, last)
                assert box.left() == []
                kills += came + again
                shutil.rmtree(box.base)
                if not again:
                    break
            if not came:
                break
        else:
            raise AssertionError("it never ends")
    assert kills > 150


def test_a_disk_that_takes_no_more_leaves_all_as_it_was(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    box.start("one", ONE)
    box.write(STATE, '{"a": 1}')
    ledger = box.ledger.read_bytes()
    rename = Path.rename

    def full(self: Path, target: Any) -> Path:
        if os.fspath(target).endswith("web.json") and "/new/" in os.fspath(self):
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"):
        box.start("two", TWO, (FIRST,))
    assert (box.state(), box.ledger.read_bytes(), box.left()) == ({"a": 1}, ledger, [])


# -- the program -------------------------------------------------------------------------------------------------------


def test_the_program_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    box = Box(tmp_path)
    for name, text in ONE.items():
        (tmp_path / "image" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "image" / name).write_text(text)

    def run(key: str) -> dict[str, Any]:
        handover.apply(tmp_path / "state", key, f"1.{key}", tmp_path / "image", tmp_path)
        found: dict[str, Any] = json.loads((tmp_path / "run/mixos/release.json").read_text())
        return found

    assert run("one")["how"] == "new"
    box.write("etc/profile", "umask 077\n")
    (tmp_path / "image/etc/profile").write_text("umask 027\n")
    found = run("two")
    assert (found["how"], found["version"], found["conflicts"]) == ("forward", "1.one", ["etc/profile"])
    assert "/etc/profile" in capsys.readouterr().out
    ledger = load(box.ledger)
    assert ledger is not None
    assert replace(ledger, conflicts=()).defaults["etc/profile"] == (b"umask 027\n", 0o644)
    box.ledger.write_text("9 x\n")
    assert run("three") == {
        "how": "failed",
        "reason": "ledger-format",
        "error": f"{box.ledger} is of the later format 9",
    }


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert handover.main(["/data"]) == 2


def test_what_the_other_daemon_was_about_to_write_comes_first(tmp_path: Path) -> None:
    box = Box(tmp_path)
    (tmp_path / "image/etc").mkdir(parents=True)
    (tmp_path / "run/mixos").mkdir(parents=True)
    box.write("etc/mixos/web.toml", "old\n")
    context = Context(run=tmp_path / "run/mixos", state=tmp_path / "var/lib/mixos", etc=tmp_path / "etc/mixos")
    record = Record("00000001", "committing", "ada", "local", "a change", "boot")
    renames = files.stage(context.changes.places, {"etc/mixos/web.toml": (b"new\n", 0o644)}, record.number)
    context.changes.journal.write(replace(record, renames=renames))
    handover.apply(tmp_path / "state", "two", "1.two", tmp_path / "image", tmp_path)
    assert box.read("etc/mixos/web.toml") == "new\n"
    assert box.left() == []


def test_whatever_the_order_of_releases_each_finds_its_own_shape(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Walks over five releases, each with a migration more, with edits in between, and restored backups."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    keys = "abcde"
    steps = [
        Migration(number, f"m{number:04}_x", rename_key(keys[number - 1], keys[number]))
        for number in range(1, len(keys))
    ]
    seen = set()
    for seed in range(25):
        chance, box, known = random.Random(seed), Box(tmp_path / str(seed)), set[int]()
        box.write(STATE, '{"a": 0}')
        kept = [(0, '{"a": 0}')]
        for turn in range(12):
            level = chance.choice([*range(len(keys)), min(turn // 3, len(keys) - 1)])
            outcome = box.start(keys[level], ONE, tuple(steps[:level]))
            seen.add((outcome.how, outcome.newer, bool(outcome.conflicts)))
            shape = list(box.state())
            assert shape == [keys[level]] or (outcome.newer and level not in known), (seed, turn)
            assert box.start(keys[level], ONE, tuple(steps[:level])).how == "same"
            known.add(level)
            if outcome.newer:
                break  # nothing leads back: it is said, and no more can be
            if chance.random() < 0.5:
                box.write(STATE, json.dumps({keys[level]: turn}))
            kept.append((level, box.read(STATE) or ""))
            if chance.random() < 0.2:  # a restore, then the reboot that it asks for
                was, text = chance.choice([one for one in kept if one[0] <= level])
                box.write(STATE, text)
                box.write(LEVEL, f"{was:04}\n")
                box.start(keys[level], ONE, tuple(steps[:level]))
                assert list(box.state()) == [keys[level]], (seed, turn)
    assert {("new", False, False), ("forward", False, False), ("back", False, False), ("back", False, True)} <= seen
    assert any(newer for _, newer, _ in seen)
