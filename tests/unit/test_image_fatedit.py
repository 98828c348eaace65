"""Editing a FAT32 file system: against a model, at every power cut, on damaged volumes."""

import contextlib
import hashlib
import itertools
import os
import random
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common.disk import fat, fatread
from common.disk.fatedit import Cleaned, Editor
from common.efi.entries import COMING, RESCUE, image_name
from tests import crashstates, fatfuzz

SIZE = 129 << 20
EPOCH = 1703030400
OFFSET = 1 << 20
LINUX = "EFI/Linux/"
FILES = {
    "EFI/BOOT/BOOTX64.EFI": b"loader" * 5000,
    LINUX + "mixos_0.1.0+3.efi": b"kernel" * 3000,
    "loader/loader.conf": b"timeout 0\n",
    "empty": b"",
}


@pytest.fixture
def esp(tmp_path: Path) -> Iterator[int]:
    """An open file with a file system at OFFSET."""
    fd = os.open(tmp_path / "esp", os.O_RDWR | os.O_CREAT)
    os.truncate(fd, OFFSET + SIZE)
    fat.write(fd, OFFSET, SIZE, FILES, volume_id=1, label="MIXOS-ESP", epoch=EPOCH)
    yield fd
    os.close(fd)


def files(fd: int) -> dict[str, bytes]:
    return fatread.read_files(fd, OFFSET, SIZE)


def edit(fd: int, block: int = 512) -> Editor:
    return Editor(fd, OFFSET, SIZE, block)


def refused(reason: str, call: Callable[..., object], *args: object, **more: object) -> None:
    with pytest.raises(fat.FatError) as caught:
        call(*args, **more)
    assert caught.value.reason == reason


def test_a_file_comes_changes_and_goes(esp: int) -> None:
    editor = edit(esp)
    before = editor.free()
    content = os.urandom(100_001)
    name = LINUX + "mixos_0.2.0+3.efi"
    editor.add(name, [content[:7], b"", content[7:70_000], content[70_000:]], len(content), epoch=EPOCH)
    assert editor.free() == before - 49 * fat.CLUSTER
    assert editor.files() == {path: len(data) for path, data in (FILES | {name: content}).items()}
    assert editor.read(name.upper(), 2047, 50_000) == content[2047:52_047]
    editor.rename(name, "mixos_0.2.0+2-1.efi")
    editor.replace("loader/loader.conf", [b"x" * 5000], 5000, epoch=EPOCH)
    editor.remove(LINUX + "MIXOS_~1.EFI")  # the short name of the first one
    want = FILES | {LINUX + "mixos_0.2.0+2-1.efi": content, "loader/loader.conf": b"x" * 5000}
    del want[LINUX + "mixos_0.1.0+3.efi"]
    assert files(esp) == want
    editor.replace("loader/loader.conf", [], 0, epoch=EPOCH)
    editor.remove(LINUX + "mixos_0.2.0+2-1.efi")
    assert edit(esp).free() == editor.free() == before + 10 * fat.CLUSTER  # the first kernel and the configuration
    assert editor.clean() == Cleaned(0, 0, 0, ())


def test_nothing_but_the_partition_is_written(esp: int, tmp_path: Path) -> None:
    os.pwrite(esp, b"before" * 80, 0)
    with crashstates.recorded(esp, tmp_path / "log", 4096) as log:
        edit(esp, 4096).add("new", [b"n" * 9000], 9000, epoch=EPOCH)
    assert log.written > 4
    events = crashstates.read_log(tmp_path / "log").events
    assert min(event.offset for event in events if event.size) >= OFFSET
    assert files(esp)["new"] == b"n" * 9000


def test_refused(esp: int) -> None:
    editor = edit(esp)
    before = os.pread(esp, 2 << 20, OFFSET)
    refused("fat-exists", editor.add, "EMPTY", [], 0, epoch=0)
    refused("fat-exists", editor.add, "efi", [], 0, epoch=0)
    refused("fat-exists", editor.add, LINUX + "mixos_~1.efi", [], 0, epoch=0)
    refused("fat-exists", editor.rename, "empty", "efi")
    refused("fat-exists", editor.rename, "empty", "Empty")
    refused("fat-missing", editor.add, "none/new", [], 0, epoch=0)
    refused("fat-missing", editor.add, "empty/new", [], 0, epoch=0)
    refused("fat-missing", editor.remove, "none")
    refused("fat-missing", editor.remove, "EFI")
    refused("fat-missing", editor.replace, "none", [], 0, epoch=0)
    refused("fat-missing", editor.rename, "EFI", "other")
    refused("fat-name", editor.add, "a:b", [], 0, epoch=0)
    refused("fat-name", editor.add, "", [], 0, epoch=0)
    refused("fat-name", editor.rename, "empty", "a/b")
    refused("fat-size", editor.add, "new", [], 1 << 32, epoch=0)
    refused("fat-full", editor.add, "new", [], SIZE, epoch=0)
    refused("fat-range", editor.read, "empty", 0, 1)
    editor.rename("empty", "empty")
    assert os.pread(esp, 2 << 20, OFFSET) == before
    for chunks in ([b"short"], [b"too long for it"], [b"exactly 10", b"more"]):
        refused("fat-length", editor.add, "new", chunks, 10, epoch=0)
    assert files(esp) == FILES
    assert editor.clean() == Cleaned(0, 0, 0, ())
    for bad in ((esp, OFFSET, SIZE, 1024), (esp, OFFSET + 512, SIZE - 512, 4096), (esp, OFFSET, SIZE - 512, 4096)):
        refused("fat-block", Editor, *bad)


@pytest.mark.parametrize("odd", ["\uf028", "\u200e", "\u3000", "\\", "/"])
def test_an_odd_name_hides_nothing_beside_it(esp: int, odd: str) -> None:
    """Such as macOS writes for a name that ends with a blank."""
    free = edit(esp).free()
    edit(esp).add("a note Q.txt", [b"note"], 4, epoch=EPOCH)
    raw = os.pread(esp, 2 << 20, OFFSET)
    place = raw.index("Q.tx".encode("utf-16-le"))
    os.pwrite(esp, odd.encode("utf-16-le"), OFFSET + place)
    name = f"a note \\u{{{ord(odd):x}}}.txt"
    assert files(esp) == FILES | {name: b"note"}
    editor = edit(esp)
    assert editor.clean() == Cleaned(0, 0, 0, ())
    editor.add(LINUX + "other.efi", [b"kernel"], 6, epoch=EPOCH)
    editor.remove(LINUX + "other.efi")
    assert editor.read(name) == b"note"
    editor.remove(name)
    assert files(esp) == FILES
    assert edit(esp).free() == free


def test_a_full_volume_is_told_before_anything_is_written(esp: int, tmp_path: Path) -> None:
    editor = edit(esp)
    volume = fatread.open_volume(esp, OFFSET, SIZE)
    room = editor.free()
    refused("fat-full", editor.add, "big", [], room + 1, epoch=EPOCH)
    assert files(esp) == FILES
    editor.add("big", (bytes(1 << 20) for _ in range(room >> 20)), room >> 20 << 20, epoch=EPOCH)
    rest = editor.free()
    editor.add("rest", [bytes(rest)], rest, epoch=EPOCH)
    assert editor.free() == 0
    with crashstates.recorded(esp, tmp_path / "log") as log:
        refused("fat-full", editor.add, "one", [b"x"], 1, epoch=EPOCH)
        refused("fat-full", editor.replace, "loader/loader.conf", [b"x"], 1, epoch=EPOCH)
        assert log.written == 0
        slots = 64 - fatread.read_folder(volume, volume.root, "").end
        for number in range(slots // 2):  # names without content, until the folder would have to grow
            editor.add(f"of_two_{number}", [], 0, epoch=EPOCH)
        done = log.written
        refused("fat-full", editor.add, "a name of two slots", [], 0, epoch=EPOCH)
        refused("fat-full", editor.rename, "empty", "a much longer name " * 9 + "~")
        assert log.written == done
    editor.remove("rest")
    editor.rename("empty", "a much longer name " * 9 + "~")
    assert edit(esp).free() == editor.free() == rest - fat.CLUSTER  # by which the folder has grown


def test_folders_grow_and_fill_their_gaps(esp: int) -> None:
    editor = edit(esp)
    want = dict(FILES)
    for number in range(120):
        name = f"{LINUX}{'n' * (number % 30 + 1) * (number % 8 + 1)}{number}.efi"
        editor.add(name, [b"%d" % number], len(b"%d" % number), epoch=EPOCH)
        want[name] = b"%d" % number
        if number % 3 == 2:
            gone = sorted(want)[len(want) // 2]
            editor.remove(gone)
            del want[gone]
    assert files(esp) == want
    assert editor.clean() == Cleaned(0, 0, 0, ())
    for _, entry in fatread.files(fatread.open_volume(esp, OFFSET, SIZE)):  # a name lies in one sector if it can
        assert len(entry.slots) > 16 or entry.slots[0] // 16 == entry.slots[-1] // 16


def test_what_lies_behind_the_end_of_a_folder_stays_unseen(esp: int) -> None:
    """Firmware stops at the end, Linux and fsck do not: zeros before the end moves, and before space is freed."""
    volume = fatread.open_volume(esp, OFFSET, SIZE)
    folder = fatread.read_folder(volume, volume.root, "")
    at, count = volume.place(volume.root) + (folder.end + 1) * 32, 64 - folder.end - 1
    ghosts = fat.entry(b"GHOST      ", fat.ARCHIVE, 0, 0, (0, 0)) * count
    os.pwrite(esp, ghosts, at)
    assert files(esp) == FILES
    name = "a name that takes four slots of the root folder"
    edit(esp).add(name, [], 0, epoch=EPOCH)
    assert files(esp) == FILES | {name: b""}
    edit(esp).remove(name)
    os.pwrite(esp, ghosts[: -6 * 32], at + 6 * 32)
    assert edit(esp).clean() == Cleaned(count - 6, 0, 0, ())
    assert os.pread(esp, len(ghosts), at)[6 * 32 :].strip(b"\0") == b""
    assert files(esp) == FILES


def test_two_names_of_one_content(esp: int) -> None:
    """What a cut in the middle of a firmware's rename leaves: both can be read, and one can be dropped."""
    volume = fatread.open_volume(esp, OFFSET, SIZE)
    entry = dict(fatread.files(volume))[LINUX + "mixos_0.1.0+3.efi"]
    editor = edit(esp)
    editor.add("other", [], 0, epoch=EPOCH)
    slot = volume.place(volume.root) + fatread.read_folder(volume, volume.root, "").entries[-1].slots[-1] * 32
    os.pwrite(esp, struct.pack("<HHHI", entry.first >> 16, 0, 0, 0), slot + 20)
    os.pwrite(esp, struct.pack("<HI", entry.first & 0xFFFF, entry.size), slot + 26)
    content = FILES[LINUX + "mixos_0.1.0+3.efi"]
    assert files(esp)["other"] == content
    editor = edit(esp)
    free = editor.free()
    assert editor.clean() == Cleaned(0, 0, 0, (("other", LINUX + "mixos_0.1.0+3.efi"),))
    editor.remove(LINUX + "mixos_0.1.0+3.efi")
    assert (editor.free(), editor.read("other")) == (free, content)
    editor.add("new", [b"n" * len(content)], len(content), epoch=EPOCH)
    assert files(esp)["other"] == content
    editor.remove("other")
    assert editor.free() == free
    assert editor.clean() == Cleaned(0, 0, 0, ())


def test_a_damaged_file_can_be_removed(esp: int) -> None:
    volume = fatread.open_volume(esp, OFFSET, SIZE)
    entry = dict(fatread.files(volume))["EFI/BOOT/BOOTX64.EFI"]
    os.pwrite(esp, struct.pack("<I", 0), volume.fats[0] + (entry.first + 3) * 4)  # the chain ends in a free cluster
    editor = edit(esp)
    refused("fat-chain", editor.read, "EFI/BOOT/BOOTX64.EFI")
    editor.add("new", [b"n" * 40_000], 40_000, epoch=EPOCH)
    editor.remove("EFI/BOOT/BOOTX64.EFI")
    editor.clean()
    assert files(esp) == {path: data for path, data in FILES.items() if "BOOT/" not in path} | {"new": b"n" * 40_000}


def test_half_a_long_name_is_no_name(esp: int) -> None:
    """Firmware believes a long name only if it is whole and has the checksum of its short name."""
    volume = fatread.open_volume(esp, OFFSET, SIZE)
    entry = dict(fatread.files(volume))[LINUX + "mixos_0.1.0+3.efi"]
    (folder,) = (one for one in fatread.folders(volume) if one.prefix == LINUX)
    at = volume.place(folder.clusters[0]) + entry.slots[0] * 32
    os.pwrite(esp, b"\xe5", at)
    assert LINUX + "MIXOS_~1.EFI" in files(esp)
    assert edit(esp).clean() == Cleaned(1, 0, 0, ())
    assert edit(esp).clean() == Cleaned(0, 0, 0, ())
    assert files(esp)[LINUX + "MIXOS_~1.EFI"] == FILES[LINUX + "mixos_0.1.0+3.efi"]


# --- against a model --------------------------------------------------------------------------------------------------

_NAMES = st.text("abXY01 ._-+~", min_size=1, max_size=60).filter(lambda one: one.rstrip(". ") == one) | st.sampled_from(
    ["mixos_1+3.efi", "mixos_1+2-1.efi", "A.TXT", "B", "n" * 200, "n" * 220]
)
_STEPS = st.lists(
    st.tuples(st.sampled_from(["add", "replace", "rename", "remove", "clean"]), _NAMES, st.integers(0, 9000)),
    max_size=25,
)


class TakenError(Exception):
    """The name is taken, or the short name of another one."""


@contextlib.contextmanager
def taken() -> Iterator[None]:
    """Let no other FatError than that pass for an answer."""
    try:
        yield
    except fat.FatError as error:
        if error.reason == "fat-exists":
            raise TakenError from error
        raise


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_STEPS, block=st.sampled_from([512, 4096]), seed=st.integers(0, 1 << 30))
def test_any_steps_give_what_a_model_gives(esp: int, steps: list[tuple[str, str, int]], block: int, seed: int) -> None:
    fat.write(esp, OFFSET, SIZE, FILES, volume_id=1, label="MIXOS-ESP", epoch=EPOCH)
    chance = random.Random(seed)
    model = dict(FILES)
    editor = edit(esp, block)
    for verb, name, size in steps:
        path = LINUX + name
        known = {one.upper() for one in model}
        old = chance.choice(sorted(model))
        with contextlib.suppress(TakenError), taken():
            if verb == "add":
                editor.add(path, [content := chance.randbytes(size)], size, epoch=EPOCH)
                assert path.upper() not in known
                model[path] = content
            elif verb == "replace":
                editor.replace(old, [content := chance.randbytes(size)], size, epoch=EPOCH)
                model[old] = content
            elif verb == "rename":
                editor.rename(old, name)
                new = old.rpartition("/")[0] + "/" + name if "/" in old else name
                assert new == old or new.upper() not in known
                model[new] = model.pop(old)
            elif verb == "remove" and len(model) > 1:
                editor.remove(old)
                del model[old]
            elif verb == "clean":
                assert editor.clean() == Cleaned(0, 0, 0, ())
    assert files(esp) == model
    assert edit(esp).free() == editor.free()
    assert editor.clean() == Cleaned(0, 0, 0, ())


def test_damaged_file_systems_are_refused_or_lose_nothing() -> None:
    fuzz = fatfuzz.Fuzz()
    results = Counter(fuzz.once(seed) for seed in range(300))
    assert results["edited"] > 100
    assert {"fat-magic", "fat-chain", "fat-loop", "fat-size"} <= set(results)


# --- at every power cut -----------------------------------------------------------------------------------------------


def step(editor: Editor, chance: random.Random, number: int) -> None:
    """One change at random, with names of one sector, of more, and such as an update has."""
    old = chance.choice(sorted(editor.files()))
    content = chance.randbytes(chance.choice([0, 100, 5000, 60_000]))
    verb = chance.choice(["add", "add", "rename", "rename", "remove", "replace"] if number > 4 else ["add"])
    if verb == "add":
        name = f"{LINUX}{'mixos_0.' if number % 3 else 'n' * chance.choice([30, 120, 210])}{number}+3.efi"
        editor.add(name, [content], len(content), epoch=EPOCH)
    elif verb == "rename":
        editor.rename(old, f"mixos_{number}{'+' * chance.choice([1, 1, 1, 100, 200])}2-1.efi")
    elif verb == "replace":
        editor.replace(old, [content], len(content), epoch=EPOCH)
    else:
        editor.remove(old)


@pytest.mark.parametrize("block", [512, 4096])
def test_every_cut_leaves_the_old_or_the_new_state(
    esp: int, tmp_path: Path, block: int, record_property: Callable[[str, object], None]
) -> None:
    """Of some cuts the rest is cleaned up, and that is cut in turn. block: what the disk writes at once."""
    chance = random.Random(block)
    path = tmp_path / "esp"
    scratch = crashstates.Scratch(path, tmp_path / "scratch", sector=block)
    snapshots = [files(esp)]
    with crashstates.recorded(esp, tmp_path / "log", block) as log:
        editor = edit(esp, block)
        for number in range(100):
            log.mark(str(number))
            step(editor, chance, number)
            snapshots.append(files(esp))
    count, both, cleaned = 0, 0, 0
    for count, state in enumerate(crashstates.states(crashstates.read_log(tmp_path / "log"), scratch), 1):
        number = int(state.step)
        old, new = snapshots[number], snapshots[number + 1]
        found = files(scratch.fd)
        if found not in (old, new):
            assert found == old | new, (state, set(found) ^ set(old), set(found) ^ set(new))
            both += 1
        if count % 90 == 0:
            cleaned += clean_at_every_cut(scratch, tmp_path, block, found)
    record_property("states", (count, both, cleaned))
    assert scratch.same(path)
    assert count > 1500
    assert both < count / 20
    assert cleaned > 20


def firmware_renames(fd: int, old: str, new: str) -> None:
    """As EDK2's driver: the old slots deleted, new ones appended, a whole stretch of the disk in one write."""
    volume = fatread.open_volume(fd, OFFSET, SIZE)
    (folder,) = (one for one in fatread.folders(volume) if one.prefix == LINUX)
    (entry,) = (one for one in folder.entries if one.name == old)
    raw = bytearray(folder.raw)
    short = (b"FW%d" % folder.end).ljust(8) + b"EFI"
    slots = [*fat.long_slots(new, short), short + raw[entry.slots[-1] * 32 :][11:32]]
    for at in entry.slots:
        raw[at * 32] = 0xE5
    raw[folder.end * 32 : (folder.end + len(slots)) * 32] = b"".join(slots)
    os.pwrite(fd, raw, volume.place(folder.clusters[0]))
    os.fsync(fd)


OLD, NEW = (image_name(hashlib.sha256(version).digest()) for version in (b"old", b"new"))


def counts(fd: int, stem: str, *counters: str) -> None:
    """Each counter becomes the next one, by firmware."""
    for before, after in itertools.pairwise(counters):
        firmware_renames(fd, f"{stem}{before}.efi", f"{stem}{after}.efi")


@pytest.fixture
def slots(esp: int) -> int:
    """The ESP of a device: a version that was called good, and what is started when nothing else is left."""
    editor = edit(esp)
    editor.add(LINUX + RESCUE, [b"rescue"], 6, epoch=EPOCH)
    editor.rename(LINUX + "mixos_0.1.0+3.efi", f"{OLD}+4.efi")
    return esp


def test_no_rename_of_the_firmware_loses_a_name(slots: int, tmp_path: Path) -> None:
    """A new version comes, after a start in the middle of that; it never gets well, the old one does; ten times."""
    kernel = FILES[LINUX + "mixos_0.1.0+3.efi"]
    scratch = crashstates.Scratch(tmp_path / "esp", tmp_path / "scratch")
    with crashstates.recorded(slots, tmp_path / "log") as log:
        log.mark("ten times")
        for _ in range(10):
            edit(slots).add(LINUX + COMING, [b"new" * 999], 2997, epoch=EPOCH)
            counts(slots, OLD, "+4", "+3-1")
            edit(slots).rename(f"{LINUX}{OLD}+3-1.efi", f"{OLD}+4.efi")
            edit(slots).rename(LINUX + COMING, f"{NEW}+3.efi")
            counts(slots, NEW, "+3", "+2-1", "+1-2", "+0-3")
            counts(slots, OLD, "+4", "+3-1")
            edit(slots).rename(f"{LINUX}{OLD}+3-1.efi", f"{OLD}+4.efi")
            edit(slots).remove(f"{LINUX}{NEW}+0-3.efi")
    names, once = set(), True
    for state in crashstates.states(crashstates.read_log(tmp_path / "log"), scratch, torn=3, orders=8):
        found = files(scratch.fd)
        old = [name for name in found if name.startswith(LINUX + OLD)]
        assert [found[name] for name in old] == [kernel], state
        assert found[LINUX + RESCUE] == b"rescue", state
        new = [found[name] for name in found if name.startswith((LINUX + NEW, LINUX + COMING))]
        once = once and new in ([], [b"new" * 999])
        names |= set(found)
    assert once
    counted = {f"{LINUX}{OLD}{one}.efi" for one in ("+4", "+3-1")}
    assert names >= counted | {f"{LINUX}{NEW}{one}.efi" for one in ("+3", "+2-1", "+1-2", "+0-3")} | {LINUX + COMING}
    assert edit(slots).clean() == Cleaned(0, 0, 0, ())


def test_where_firmware_counts_more_often_than_a_sector_has_room(slots: int, tmp_path: Path) -> None:
    """Both versions run out without our coming up: a cut in the fifth rename or a later one may lose the name that it
    changes. The rescue system and the other version stay."""
    edit(slots).add(f"{LINUX}{NEW}+3.efi", [b"new"], 3, epoch=EPOCH)
    scratch = crashstates.Scratch(tmp_path / "esp", tmp_path / "scratch")
    with crashstates.recorded(slots, tmp_path / "log") as log:
        for step, (stem, *counters) in enumerate(
            [
                *((NEW, *pair) for pair in itertools.pairwise(("+3", "+2-1", "+1-2", "+0-3"))),
                *((OLD, *pair) for pair in itertools.pairwise(("+4", "+3-1", "+2-2", "+1-3", "+0-4"))),
            ],
            1,
        ):
            log.mark(str(step))
            counts(slots, stem, *counters)
    lost = Counter()
    for state in crashstates.states(crashstates.read_log(tmp_path / "log"), scratch, torn=50, orders=50):
        found = files(scratch.fd)
        there = [stem for stem in (OLD, NEW) if any(name.startswith(LINUX + stem) for name in found)]
        assert LINUX + RESCUE in found, state
        assert NEW in there, state
        lost[state.step] += OLD not in there
    assert {step for step, count in lost.items() if count} <= {"5", "6", "7"}
    assert lost["5"]


def clean_at_every_cut(cut: crashstates.Scratch, folder: Path, block: int, want: dict[str, bytes]) -> int:
    """Clean up what a cut has left; gives in how many states that was cut."""
    again = crashstates.Scratch(cut.path, folder / "again", sector=block)
    before = crashstates.Scratch(cut.path, folder / "before", sector=block)
    with crashstates.recorded(again.fd, folder / "log-of-clean", block) as log:
        log.mark("clean")
        editor = edit(again.fd, block)
        editor.clean()
    count = 0
    for state in crashstates.states(crashstates.read_log(folder / "log-of-clean"), before):
        assert files(before.fd) == want, state
        count += 1
    found = editor.clean()
    assert (found.slots, found.clusters, found.sectors) == (0, 0, 0)
    assert editor.free() == edit(again.fd).free()
    again.close()
    before.close()
    return count
