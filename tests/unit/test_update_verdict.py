"""Why images failed, and the record of it."""

import json
import re

import pytest

from common.efi.entries import Entry
from daemon.parts.update.boot import Boot, Image
from daemon.parts.update.ending import OVERDUE, RESET, ending, last_words
from daemon.parts.update.record import MAX_HISTORY, Blocked, Record, Records, Trial
from daemon.parts.update.verdict import failures
from tests.native import SOURCES

GOOD, NEW = b"\1" * 32, b"\2" * 32


def image(digest, version, left, done=0, slot="b"):
    return Image(Entry("k3v7q", left, done, version=version), digest, "6.6.8", slot)


def boot(*others):
    running = image(GOOD, "1.0", 3, 1, slot="a")
    return Boot("a", GOOD, (running, *others), running)


@pytest.mark.parametrize(
    ("record", "ended", "words"),
    [
        (Record(), None, "after 3 starts: the daemon was never up"),
        (Record(), "kernel panic: VFS", "after 3 starts: kernel panic: VFS"),
        (Record(trial=Trial(root_hash=NEW.hex(), version="1.1")), None, "after the daemon was up"),
        (
            Record(trial=Trial(root_hash=NEW.hex(), version="1.1", problem="web is not up")),
            "kernel panic: x",
            "after 3 starts: web is not up; then kernel panic: x",
        ),
        (Record(), RESET, "after 3 starts: the watchdog restarted the machine"),
        (Record(), OVERDUE, "after 3 starts: it was not well in time: the daemon was never up"),
        (Record(trial=Trial(root_hash=NEW.hex(), version="1.1")), OVERDUE, "after 3 starts: it was not well in time"),
        (
            Record(trial=Trial(root_hash=NEW.hex(), version="1.1", problem="web is not up")),
            OVERDUE,
            "after 3 starts: it was not well in time: web is not up",
        ),
        (Record(trial=Trial(root_hash="00", version="9", problem="another one")), None, "never up"),
    ],
)
def test_an_image_without_starts_has_failed_and_is_told_why(record, ended, words):
    (failed,) = failures(boot(image(NEW, "1.1", 0, 3)), record, ended)
    assert failed.image.version == "1.1"
    assert words in failed.reason


def test_an_entry_whose_slot_holds_something_else():
    (failed,) = failures(boot(image(NEW, "1.1", 0, 3, slot=None)), Record(), None)
    assert "no slot holds" in failed.reason


def test_what_is_known_is_not_told_again():
    bad = image(NEW, "1.1", 0, 3)
    blocked = Blocked(version="1.1", reason="x", at=1.0)
    assert failures(boot(bad), Record(blocked={NEW.hex(): blocked}), None) == []
    assert failures(boot(bad), Record(given_up=(NEW.hex(),)), None) == []
    assert failures(boot(image(NEW, "1.1", 2, 1)), Record(), None) == []


def test_the_last_words_of_a_kernel():
    dump = "<4>[    1.2] VFS: ...\n<0>[    1.3] Kernel panic - not syncing: VFS: Unable to mount root fs\n<0> more"
    assert last_words(dump) == "kernel panic: VFS: Unable to mount root fs"
    assert last_words("<6>[ 1.0] all is well") is None


def test_the_keeper_says_what_is_looked_for():
    said = re.findall(r'say\("(.*)\\n"\)', (SOURCES / "keeper" / "main.c").read_text())
    assert [last_words(line) for line in said] == [OVERDUE, None]


@pytest.mark.parametrize(
    ("status", "words"), [(None, None), ("0", None), ("32", RESET), ("33", RESET), ("-32", None), ("", None)]
)
def test_what_the_watchdog_remembers(tmp_path, status, words):
    if status is not None:
        folder = tmp_path / "sys/class/watchdog/watchdog0"
        folder.mkdir(parents=True)
        (folder / "bootstatus").write_text(f"{status}\n")
    assert ending(tmp_path).words == words


def test_the_newest_words_of_a_kernel_count_and_more_than_the_watchdog(tmp_path):
    for folder in ("sys/fs/pstore", "sys/class/watchdog/watchdog0"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "sys/class/watchdog/watchdog0/bootstatus").write_text("32\n")
    kept = [tmp_path / "sys/fs/pstore" / f"dmesg-efi_pstore-17{number}" for number in (1, 2, 3)]
    kept[0].write_text("Panic#1 Part1\n<0>[ 1.0] Kernel panic - not syncing: x\n")
    kept[1].write_text("Shutdown#1 Part1\n<2>[600.1] mixos: this version did not get well in time: restarting\n")
    kept[2].mkdir()
    assert ending(tmp_path) == (OVERDUE, tuple(kept))


def test_a_record_is_read_again(tmp_path):
    records = Records(tmp_path / "update" / "record.json", clock=lambda: 7.0)
    records.load()
    records.change(floor=3, history=records.history(records.happened("committed", "1.0", "a")))
    other = Records(records.path)
    other.load()
    assert other.now == records.now
    assert other.now.history[0].at == 7.0


def test_a_history_is_bounded(tmp_path):
    records = Records(tmp_path / "record.json")
    for number in range(MAX_HISTORY + 5):
        records.change(history=records.history(records.happened("committed", str(number))))
    assert len(records.now.history) == MAX_HISTORY
    assert records.now.history[-1].version == str(MAX_HISTORY + 4)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 9}', b'{"floor": "x"}', b"\xff"])
def test_a_damaged_record_is_kept_beside_and_begun_anew(tmp_path, content):
    path = tmp_path / "record.json"
    path.write_bytes(content)
    records = Records(path)
    records.load()
    assert records.now == Record()
    assert path.with_suffix(".damaged").read_bytes() == content
    records.change(floor=1)
    assert json.loads(path.read_text())["floor"] == 1
