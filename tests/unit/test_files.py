"""Files that are replaced whole: after a crash at any step each has its old content or the new one."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
from pathlib import Path

import pytest

from common.files import folder_of, open_place, read_regular, write_all, write_atomically, write_whole
from common.lines import split_lines
from common.tomledit import set_keys

NEW = {"a": b"new a", "b": b"", "c": b"x" * 100_000}


class Crash(Exception):
    """The power goes."""


@pytest.fixture
def crash(monkeypatch):
    """Let the system call of that number, and all behind it, not happen; 0: none. Returns how many were asked for."""
    count = 0

    def at(last: int) -> None:
        nonlocal count
        count = 0

        def counted(owner: object, name: str) -> None:
            real = getattr(owner, name)

            def call(*given: object, **more: object) -> object:
                nonlocal count
                count += 1
                if last and count >= last:
                    raise Crash
                return real(*given, **more)

            monkeypatch.setattr(owner, name, call)

        for owner, name in ((os, "open"), (os, "fsync"), (os, "fchmod"), (Path, "rename")):
            counted(owner, name)

    yield at
    monkeypatch.undo()


def test_many_files_at_once_are_old_or_new_after_a_crash_at_any_step(tmp_path, crash, monkeypatch):
    step, crashed = 0, True
    while crashed:
        step += 1
        folder = tmp_path / str(step)
        folder.mkdir()
        for name in NEW:
            (folder / name).write_bytes(b"old")
        crash(step)
        try:
            write_all(folder, NEW, 0o640)
            crashed = False
        except Crash:
            pass
        monkeypatch.undo()
        for name, data in NEW.items():
            assert (folder / name).read_bytes() in (b"old", data)
        assert {path.name for path in folder.iterdir() if not path.name.startswith(".")} == set(NEW)
    assert {name: (folder / name).read_bytes() for name in NEW} == NEW
    assert {stat.S_IMODE((folder / name).stat().st_mode) for name in NEW} == {0o640}
    assert sorted(path.name for path in folder.iterdir()) == sorted(NEW)
    assert step > 15


def test_each_of_many_files_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def synced(descriptor: int) -> None:
        done.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        done.append(f"rename {target.name}")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    write_all(tmp_path, NEW, 0o600)
    assert done == [
        *(f"sync .{name}.new" for name in NEW),
        *(f"rename {name}" for name in NEW),
        f"sync {tmp_path.name}",
    ]
    done.clear()
    write_all(tmp_path, {}, 0o600)
    write_whole(tmp_path / "a", b"1", 0o600)
    assert done == ["rename a"]
    write_atomically(tmp_path / "a", b"2", 0o600)
    assert done == ["rename a", "sync .a.new", "rename a", f"sync {tmp_path.name}"]


def test_a_link_in_the_way_is_not_followed(tmp_path):
    (tmp_path / "other").write_bytes(b"kept")
    (tmp_path / ".a.new").symlink_to(tmp_path / "other")
    for write in (lambda: write_whole(tmp_path / "a", b"1", 0o600), lambda: write_all(tmp_path, {"a": b"1"}, 0o600)):
        with pytest.raises(OSError, match=r"\.a\.new"):
            write()
    assert (tmp_path / "other").read_bytes() == b"kept"


def strangers(link: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A link that somebody else has made."""
    link.symlink_to(target)
    if os.geteuid() == 0:
        os.lchown(link, 12345, 12345)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: 0)
    return link


def test_links_of_root_and_of_ours_are_followed(tmp_path):
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to(tmp_path / "file")
    assert read_regular(tmp_path / "one") == b"text"
    assert read_regular(tmp_path / "one", 2) == b"te"
    (tmp_path / "nowhere").symlink_to("gone")
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "nowhere")


@pytest.mark.parametrize("behind", [False, True])
def test_a_link_of_a_stranger_leads_nowhere(tmp_path, monkeypatch, behind):
    """Who may write a folder must not have us read what they cannot."""
    (tmp_path / "secret").write_bytes(b"secret")
    link = strangers(tmp_path / "link", tmp_path / "secret", monkeypatch)
    if behind and os.geteuid() == 0:
        (link := tmp_path / "first").symlink_to("link")
    with pytest.raises(OSError) as caught:
        read_regular(link)
    assert caught.value.errno == errno.ELOOP


# case: H1
def test_a_link_of_a_stranger_on_the_way_leads_nowhere(tmp_path, monkeypatch):
    (tmp_path / "roots").mkdir()
    (tmp_path / "roots" / "file").write_bytes(b"secret")
    link = strangers(tmp_path / "link", tmp_path / "roots", monkeypatch)
    for deed in (lambda: read_regular(link / "file"), lambda: os.close(open_place(link / "a/b", make=True))):
        with pytest.raises(OSError) as caught:
            deed()
        assert caught.value.errno == errno.ELOOP
    assert [one.name for one in (tmp_path / "roots").iterdir()] == ["file"]


def test_folders_on_the_way_are_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with folder_of(Path("a/../a/b/c"), make=True) as folder:
        assert stat.S_IMODE(os.fstat(folder).st_mode) == 0o755
    assert [str(one) for one in Path().rglob("*")] == ["a", "a/b"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make folders of others")
@pytest.mark.parametrize(
    ("owner", "mode", "inner", "settled"),
    [
        (0, 0o755, 0, True),
        (0, 0o1777, 0, True),  # such as /tmp
        (0, 0o755, 12345, True),
        (0, 0o1777, 12345, False),
        (0, 0o777, 0, False),
        (12345, 0o755, 0, False),
        (12345, 0o1755, 0, False),
    ],
)
def test_a_settled_place_is_changed_by_nobody_else(tmp_path, owner, mode, inner, settled):
    (tmp_path / "outer/inner").mkdir(parents=True)
    os.chown(tmp_path / "outer/inner", inner, inner)
    os.chown(tmp_path / "outer", owner, 0)
    (tmp_path / "outer").chmod(mode)
    try:
        os.close(open_place(tmp_path / "outer/inner", settled=True))
        assert settled
    except PermissionError:
        assert not settled
    os.close(open_place(tmp_path / "outer/inner"))


@pytest.mark.parametrize("kind", ["loop", "pipe", "folder", "device"])
# case: H2
def test_only_files_are_read(tmp_path, kind):
    path = tmp_path / "it"
    if kind == "loop":
        path.symlink_to(path)
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero")
    with pytest.raises(OSError):
        read_regular(path)


# case: D20
def test_a_lease_is_not_waited_for(tmp_path):
    (tmp_path / "leased").write_bytes(b"text")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # how the kernel asks for the lease
    try:
        with (tmp_path / "leased").open("rb+") as holder:
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            with pytest.raises(BlockingIOError):
                read_regular(tmp_path / "leased")
            fcntl.fcntl(holder, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert read_regular(tmp_path / "leased") == b"text"
    finally:
        signal.signal(signal.SIGIO, before)


@pytest.mark.parametrize("odd", ["\u2028", "\x85"])
def test_only_newlines_end_a_line(odd: str):
    assert split_lines("") == []
    assert split_lines("\n") == [""]
    assert split_lines(f"a{odd}b\r\n\nc") == [f"a{odd}b", "", "c"]
    text = f"# one{odd}two\n[a]\nb = 'x'\n"
    assert set_keys(text, ("a",), {"b": "y"}) == f'# one{odd}two\n[a]\nb = "y"\n'
