"""Defaults of /etc that a new release changed, in files that the device has changed as well.

/etc is an overlay: a file that was ever changed on the device hides what later releases bring. So each file of which
the device has its own content is merged: base is the default of the release before, one side the new default, the other
the device's file. What cannot be merged, or would be refused by who reads it, stays as the device has it, and is told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from common.errors import ConfigError, MixosError
from common.files import read_regular, write_durably
from common.merge import merge
from common.text import decoded
from daemon.core.manifest import checker, file_for
from daemon.core.release.ledger import File
from daemon.core.release.tree import Tree

# Made of the device's settings (`common.settings.render`): once the device has its own, what a release would set is
# nothing to it. Above all an update must not let anybody in whom the device's owner has not.
SETTINGS = (
    "etc/hostname",
    "etc/hosts",
    "etc/localtime",
    "etc/mixos/network.conf",
    "etc/mixos/update.toml",
    "etc/ntp.conf",
    "etc/ssh/authorized_keys/",
    "etc/ssh/sshd_config.d/10-accounts.conf",
    "etc/timezone",
)
# /etc/shadow is copied nowhere. /etc/issue and /etc/mtab are not for people to change.
_NOT_MERGED = ("etc/shadow", "etc/issue", "etc/mtab")
_FIELDS = {"etc/passwd": 7, "etc/group": 4}
_MAX_FILES = 2000

Check = Callable[[str, bytes], None]


def read_defaults(image: Path) -> dict[str, File]:
    """The files of the image's own /etc by name. image: its root, without what is mounted over it. Raises OSError."""
    found = {}
    for path in _regular(image / "etc"):
        name = f"etc/{path.relative_to(image / 'etc')}"
        if name not in _NOT_MERGED:
            found[name] = (read_regular(path), path.stat().st_mode & 0o7777)
        if len(found) > _MAX_FILES:
            raise MixosError(f"{image}/etc has more than {_MAX_FILES} files", reason="release-defaults")
    return found


def _regular(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_symlink():
            continue
        if path.is_dir():
            yield from _regular(path)
        elif path.is_file():
            yield path


def merge_defaults(base: Mapping[str, File], new: Mapping[str, File], tree: Tree, check: Check) -> list[str]:
    """Change files in `tree`; gives those that stay as the device has them though there is a new default.

    base: defaults of the release before; a file that is not in it was not in that release.
    """
    conflicts = []
    for name in sorted({*base, *new}):
        was, now = base.get(name), new.get(name)
        try:
            mine = tree.file(name)
        except MixosError:  # not root's own file: whoever made it so wants it so
            continue
        if mine in (now, None) or now == was:
            continue
        if mine == was:
            tree.put(name, now)
        elif now is None or name.startswith(SETTINGS):
            continue
        elif (merged := _merged(name, was or (b"", now[1]), mine, now, check)) is not None:
            tree.put(name, merged)
        else:
            conflicts.append(name)
    return conflicts


def _merged(name: str, base: File, mine: File, theirs: File, check: Check) -> File | None:
    """Content and mode of both, None when there is a conflict."""
    data = merge(base[0], mine[0], theirs[0])
    if data is None:
        return None
    try:
        check(name, data)
    except MixosError:
        return None
    return data, theirs[1] if mine[1] == base[1] else mine[1]


def merged_back(name: str, before: File | None, after: File | None, now: File | None, check: Check) -> File | None:
    """The content that a release gets back which had `before`, when a later one made `after` of it, and it is `now` by
    what happened since; None when there is a conflict."""
    if before is None or after is None or now is None or not name.startswith("etc/") or name.startswith(SETTINGS):
        return None
    return _merged(name, after, now, before, check)


def refuse_broken(name: str, data: bytes) -> None:
    """Raises MixosError for content that its reader would refuse, as far as that can be known beforehand."""
    if name.startswith("etc/mixos/"):
        found = file_for(name.removeprefix("etc/mixos/"))
        check = checker(*found) if found is not None else None
        if check is not None:
            check(decoded(data, Path(name)), Path(name))
    elif name in _FIELDS:
        _check_accounts(name, data.split(b"\n"))
    elif name == "etc/ssh/sshd_config":
        _ask(data, "/usr/sbin/sshd", "-t", "-f")
    elif name == "etc/profile" or name.endswith(".sh"):
        _ask(data, "/bin/sh", "-n")


def _check_accounts(name: str, lines: Iterable[bytes]) -> None:
    """passwd(5), group(5): fields, each account once, and each number: two that share one are one to the kernel."""
    seen: set[bytes] = set()
    numbers: set[int] = set()
    for number, line in enumerate(lines, 1):
        words = line.split(b":")
        if not line:
            continue
        if len(words) != _FIELDS[name] or words[0] in seen or not words[2].isdigit() or int(words[2][:12]) in numbers:
            raise ConfigError(f"{name}:{number}: {line[:80]!r}", reason="release-accounts")
        seen.add(words[0])
        numbers.add(int(words[2][:12]))
    if b"root" not in seen:
        raise ConfigError(f"{name}: there is no root", reason="release-accounts")


def _ask(data: bytes, *command: str) -> None:
    """Have a program look at a file. Raises MixosError `program-failed`, `program-missing`."""
    import tempfile

    from daemon.linux import process  # seldom needed, and init waits

    with tempfile.TemporaryDirectory() as folder:
        write_durably(path := Path(folder, "candidate"), data, 0o600)
        process.run([*command, str(path)])
