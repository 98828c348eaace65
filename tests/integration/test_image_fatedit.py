"""The editor of FAT32 against fsck.fat, mtools, mkfs.fat and the kernel's vfat; logs of writes against QEMU."""

import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from buildsys.run import CommandError, kill_group, run, spawn
from common.disk import fat, fatread
from common.disk.fatedit import Cleaned, Editor
from image.qmp import Qmp
from tests import crashstates

pytestmark = pytest.mark.integration
EPOCH = 1703030400
FOLDER = "EFI/Linux/"
FILES = {FOLDER + "mixos_0.1.0+3.efi": b"kernel" * 9000, "loader/loader.conf": b"timeout 0\n"}


def ours(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(129 << 20)
        fat.write(file.fileno(), 0, 129 << 20, FILES, volume_id=1, label="MIXOS-ESP", epoch=EPOCH)


def theirs(path: Path, size: int, *options: str) -> None:
    """A file system of `size` MiB by mkfs.fat, with files by mtools."""
    run(["mkfs.vfat", "-C", "-F", "32", "-n", "OTHER", "-s", "1", *options, path, str(size << 10)])
    for folder in ("EFI", "EFI/Linux", "loader"):
        run(["mmd", "-i", path, f"::{folder}"])
    for name, content in FILES.items():
        (path.parent / "in").write_bytes(content)
        run(["mcopy", "-i", path, path.parent / "in", f"::{name}"])


@pytest.fixture(params=["ours", "mkfs, clusters of 512 bytes", "mkfs, sectors of 4096 bytes"])
def esp(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "esp"
    if request.param == "ours":
        ours(path)
    elif "512" in request.param:
        theirs(path, 36)
    else:
        theirs(path, 300, "-S", "4096")
    return path


@contextmanager
def editing(path: Path, block: int = 512) -> Iterator[Editor]:
    fd = os.open(path, os.O_RDWR)
    yield Editor(fd, 0, path.stat().st_size, block)
    os.close(fd)


def files(path: Path) -> dict[str, bytes]:
    with path.open("rb") as file:
        return fatread.read_files(file.fileno(), 0, path.stat().st_size)


def listed(path: Path) -> set[str]:
    """The files as mtools lists them."""
    lines = run(["mdir", "-b", "-/", "-i", path, "::"]).text.split("\n")
    return {line.removeprefix("::/") for line in lines if not line.endswith("/")}


def change(editor: Editor, seed: int, count: int = 40) -> None:
    """Changes of all kinds, in folders that grow."""
    chance = random.Random(seed)
    for number in range(count):
        old = chance.choice(sorted(editor.files()))
        verb = chance.choice(["add", "add", "rename", "remove", "replace"]) if number > 4 else "add"
        content = chance.randbytes(chance.choice([0, 100, 30_000]))
        if verb == "add":
            name = f"{FOLDER}{'long' * chance.choice([0, 3, 30, 55])}{seed}_{number}.efi"
            editor.add(name, [content], len(content), epoch=EPOCH)
        elif verb == "rename":
            editor.rename(old, f"renamed_{seed}_{number}+2-1.efi")
        elif verb == "replace":
            editor.replace(old, [content], len(content), epoch=EPOCH)
        else:
            editor.remove(old)


def test_fsck_and_mtools_agree(esp: Path, tmp_path: Path) -> None:
    """Also when mtools change it in between."""
    for seed in range(2):
        with editing(esp, 4096 if seed % 2 else 512) as editor:
            change(editor, seed)
            assert editor.clean() == Cleaned(0, 0, 0, ())
        run(["fsck.fat", "-n", "-v", esp])
        content = files(esp)
        assert listed(esp) == set(content)
        for name in sorted(content)[:3]:
            run(["mcopy", "-o", "-i", esp, f"::{name}", tmp_path / "out"])
            assert (tmp_path / "out").read_bytes() == content[name]
        run(["mren", "-i", esp, f"::{sorted(content)[0]}", f"by mtools {seed}"])
        run(["mcopy", "-i", esp, tmp_path / "out", f"::{FOLDER}copied by mtools {seed}.efi"])
        run(["mdel", "-i", esp, f"::{sorted(content)[1]}"])


def test_what_a_cut_left_is_cleaned_to_the_satisfaction_of_fsck(esp: Path, tmp_path: Path) -> None:
    scratch = crashstates.Scratch(esp, tmp_path / "scratch")
    fd = os.open(esp, os.O_RDWR)
    with crashstates.recorded(fd, tmp_path / "log") as log:
        log.mark("changes")
        change(Editor(fd, 0, esp.stat().st_size), 1)
    os.close(fd)
    dirty = 0
    for count, _ in enumerate(crashstates.states(crashstates.read_log(tmp_path / "log"), scratch)):
        if count % 25:
            continue
        copy = crashstates.Scratch(scratch.path, tmp_path / "copy")
        found = files(copy.path)
        assert listed(copy.path) == set(found)
        with editing(copy.path) as editor:
            cleaned = editor.clean()
            dirty += (cleaned.slots, cleaned.clusters, cleaned.sectors) != (0, 0, 0)
            for _, *others in cleaned.shared:
                for name in others:
                    editor.remove(name)
                    del found[name]
        run(["fsck.fat", "-n", "-v", copy.path])
        assert files(copy.path) == found
        copy.close()
    assert dirty > 3


def test_the_kernel_reads_what_we_wrote(esp: Path, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    with editing(esp) as editor:
        change(editor, 5)
    (tmp_path / "mnt").mkdir()
    try:
        run(["mount", "-t", "vfat", "-o", "loop,iocharset=utf8", esp, tmp_path / "mnt"])
    except CommandError:
        pytest.skip("this host's kernel mounts no vfat file system")
    try:
        found = {
            str(path.relative_to(tmp_path / "mnt")): path.read_bytes()
            for path in (tmp_path / "mnt").rglob("*")
            if path.is_file()
        }
        (tmp_path / "mnt" / FOLDER / "by the kernel.efi").write_bytes(b"k" * 70_000)
    finally:
        run(["umount", tmp_path / "mnt"])
    assert found | {FOLDER + "by the kernel.efi": b"k" * 70_000} == files(esp)
    with editing(esp) as editor:
        editor.rename(FOLDER + "by the kernel.efi", "by us.efi")


def test_a_log_of_qemu_is_read(tmp_path: Path) -> None:
    disk, log = tmp_path / "disk", tmp_path / "log"
    disk.write_bytes(b"." * (1 << 20))
    log.touch()
    scratch = crashstates.Scratch(disk, tmp_path / "scratch")
    nodes = f"driver=blklogwrites,node-name=disk,file.driver=file,file.filename={disk}"
    nodes += f",log.driver=file,log.filename={log},log-sector-size=512"
    machine = ["-machine", "none", "-nodefaults", "-display", "none", "-S", "-blockdev", nodes]
    process = spawn(["qemu-system-x86_64", *machine, "-qmp", f"unix:{tmp_path}/qmp,server=on,wait=off"])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "qmp").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with Qmp(tmp_path / "qmp", 60) as qmp:
            for line in ("write -P 0x61 512 1k", "flush", "write -P 0x62 0 512", "write -z 4k 4k", "flush"):
                qmp.command("human-monitor-command", **{"command-line": f'qemu-io disk "{line}"'})
            qmp.command("quit")
        process.wait(60)
    finally:
        kill_group(process)
    seen = set()
    for _ in crashstates.states(crashstates.read_log(log), scratch):
        seen.add(os.pread(scratch.fd, 1536, 0)[::512] + os.pread(scratch.fd, 4096, 4096)[::512])
    assert {b".a" + b"." * 9, b".aa" + b"." * 8, b"baa" + b"." * 8, b"baa" + bytes(8), b".aa" + bytes(8)} <= seen
    assert not any(one.startswith((b"b.", b"ba.")) for one in seen)
    assert scratch.same(disk)
