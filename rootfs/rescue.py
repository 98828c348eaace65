"""The rescue entry's initramfs: the part of the image's root that repairs a disk, and its own start (`rescue/`).

It runs from memory, so it is as small as it can be: modules of Python are there as byte code alone, and only those that
its programs import. `rescue.toml` says what else is taken.
"""

from __future__ import annotations

import json
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from backports import zstd

from buildsys.job import Job
from buildsys.run import Completed, run
from common import toml
from common.bundle import frames
from common.errors import CheckError
from kernel.payload import FRAME, LEVEL
from packages.mix import elf
from packages.mix.artifact import glob_pattern
from packages.mix.manifest import Entry, hash_file, sort_key, walk
from rootfs import modules
from rootfs.compose import RootFile, read_root, write_tree
from rootfs.cpio import write_cpio

FILE = "rescue.cpio.zst"
_LARGE: dict[int, int] = {
    zstd.CompressionParameter.compression_level: 12,  # 19 takes ten times as long, and saves 10 %
    zstd.CompressionParameter.window_log: 23,  # bits: a decompressor of any version has room for 8 MiB
    zstd.CompressionParameter.content_size_flag: 0,  # so that no device takes it for a frame that it can pack again
}
_HEADER = 128  # bytes of an archive's entry besides its name and content, and more
_EVERY = 16  # files of an archive, about
_BUSYBOX = "usr/bin/busybox"
_OURS = "usr/lib/mixos/python/"
_BRACES = re.compile(r"\{([^{}]*)\}")
_PYTHON = re.compile(r"usr/lib/(?:python3\.[0-9]+|mixos/python)/.*")


def initramfs(job: Job) -> None:
    """Action: inputs `root` (output of `compose`), `rescue` (the folder `rescue/`), `rescue.toml` → `rescue.cpio.zst`,
    and `files` (its paths with sizes, for reports).

    Parameters: `elf` as in `compose`. Raises CheckError: `rescue-file` for a module without byte code, `elf-rules` for
    a program whose libraries are not there, `rescue-import` for one of our modules that cannot be imported.
    """
    choice = toml.loads(job.inputs["rescue.toml"].read_text("utf-8"))
    root = {file.entry.path: file for file in read_root(job.inputs["root"])}
    own = {file.entry.path: file for file in _own(job.inputs["rescue"], choice["links"])}
    chosen = {**_chosen(root, choice["files"]), **_links(root), **own}
    chosen.update(_modules(job, root, chosen.values(), choice))
    _add_folders(chosen, root)
    files = [chosen[path] for path in sorted(chosen, key=sort_key)]
    _check_libraries(files, job.params["elf"])
    _check_modules(files, job)
    (job.out / FILE).write_bytes(b"".join(pack(files, job.epoch)))
    rows = [f"{file.entry.size} {file.entry.path}\n" for file in files]
    (job.out / "files").write_text("".join(rows), encoding="utf-8")


def pack(files: Iterable[RootFile], epoch: int) -> Iterator[bytes]:
    """Archives, each in a zstd frame of its own, which the kernel unpacks one after the other.

    What changes in one is not in the others. A delta unpacks all but those of larger files (`common.bundle.frames`).
    Level and size are those of the kernel's frames beside them: a plan has one level, and a device memory for so much.
    Where one ends follows from the path that begins the next, so that a file that grows moves little.
    """
    for group in _groups(files):
        data = b"".join(write_cpio(group, epoch))
        yield frames.pack(data, LEVEL) if len(data) <= FRAME else zstd.compress(data, options=_LARGE)


def _groups(files: Iterable[RootFile]) -> Iterator[list[RootFile]]:
    group: list[RootFile] = []
    size = 0
    for file in files:
        length = file.entry.size + len(file.entry.path.encode()) + len(file.entry.target) + _HEADER
        begins = zlib.crc32(file.entry.path.encode()) % _EVERY == 0 or size + length > FRAME - 2 * _HEADER
        if group and begins:
            yield group
            group, size = [], 0
        group.append(file)
        size += length
    if group:
        yield group


def _chosen(root: Mapping[str, RootFile], globs: Sequence[str]) -> dict[str, RootFile]:
    found: dict[str, RootFile] = {}
    for glob in globs:
        patterns = [glob_pattern(one) for one in _alternatives(glob)]
        found |= {path: file for path, file in root.items() if any(one.fullmatch(path) for one in patterns)}
    return found


def _alternatives(glob: str) -> Iterator[str]:
    """a{b,c}d → abd, acd."""
    braces = _BRACES.search(glob)
    if braces is None:
        yield glob
        return
    for word in braces[1].split(","):
        yield from _alternatives(glob[: braces.start()] + word + glob[braces.end() :])


def _links(root: Mapping[str, RootFile]) -> dict[str, RootFile]:
    """The tools that BusyBox is."""
    return {
        path: file
        for path, file in root.items()
        if file.entry.type == "symlink"
        and posixpath.normpath(posixpath.join(posixpath.dirname(path), file.entry.target)).lstrip("/") == _BUSYBOX
    }


def _own(folder: Path, links: Mapping[str, str]) -> Iterator[RootFile]:
    for path, info in walk(folder):
        source = folder / path
        if source.is_file():
            mode = 0o755 if info.st_mode & 0o111 else 0o644
            yield RootFile(Entry(path, "file", mode, size=info.st_size, sha256=hash_file(source)), "rescue", source)
    for path, target in links.items():
        yield RootFile(Entry(path, "symlink", 0o777, target=target), "rescue", Path())


def _modules(
    job: Job, root: Mapping[str, RootFile], chosen: Iterable[RootFile], choice: Mapping[str, Any]
) -> dict[str, RootFile]:
    """The modules of Python that the chosen programs import, as byte code where the interpreter looks for sources."""
    programs = [file.source.read_text("utf-8") for file in chosen if _is_python(file)]
    question = {"programs": programs, "always": choice["modules"], "without": choice["without"]}
    folder = job.inputs["root"] / "files"
    answer = _python(folder, [modules.__file__, str(folder)], json.dumps(question).encode())
    return {file.entry.path: file for path in json.loads(answer.stdout) for file in [_compiled(root, path)]}


def _python(root: Path, words: Sequence[str], given: bytes = b"", allow: Sequence[int] = (0,)) -> Completed:
    """Run the interpreter of a root, through its own dynamic loader: host and target share the machine type."""
    library = root / "usr/lib"
    interpreter = next(iter(sorted((root / "usr/bin").glob("python3.[0-9]*[0-9]"))))
    argv: list[str | Path] = [library / "libc.so", "--library-path", library, interpreter, "-ISB"]
    return run(
        [*argv, *words], stdin=given, env={"PYTHONHOME": str(root / "usr")}, split=True, allow=allow, timeout=120
    )


def _compiled(root: Mapping[str, RootFile], path: str) -> RootFile:
    if not path.endswith(".py"):
        return root[path]
    folder, name = posixpath.split(path.removesuffix(".py"))
    caches = [one for one in root if one.startswith(f"{folder}/__pycache__/{name}.cpython-") and one.endswith(".pyc")]
    if len(caches) != 1:
        raise CheckError(f"/{path} has {len(caches)} files of byte code, not one", reason="rescue-file")
    found = root[caches[0]]
    return replace(found, entry=replace(found.entry, path=f"{folder}/{name}.pyc"))


def _is_python(file: RootFile) -> bool:
    if file.entry.type != "file" or _PYTHON.fullmatch(file.entry.path):
        return False
    with file.source.open("rb") as stream:
        return stream.readline(80).startswith(b"#!/usr/bin/python3 ")


def _add_folders(chosen: dict[str, RootFile], root: Mapping[str, RootFile]) -> None:
    """The folders that everything is in; those of our own are root's, 0755."""
    for path in list(chosen):
        while path := posixpath.dirname(path):
            own = RootFile(Entry(path, "dir", 0o755), "rescue", Path())
            chosen.setdefault(path, root.get(path, own))


def _check_modules(files: Sequence[RootFile], job: Job) -> None:
    """Whether our modules can be imported with nothing but what is there: some are found by name only."""
    tree = job.work / "tree"
    write_tree(files, tree)
    ours = [file.entry.path for file in files if file.entry.path.startswith(_OURS) and file.entry.path.endswith(".pyc")]
    names = [path.removeprefix(_OURS).removesuffix(".pyc").removesuffix("/__init__").replace("/", ".") for path in ours]
    paths = [str(tree / _OURS), *map(str, tree.glob("usr/lib/python3.*/site-packages"))]
    program = (
        f"import importlib, sys\nsys.path += {paths!r}\nfor name in {names!r}:\n    importlib.import_module(name)\n"
    )
    done = _python(tree, ["-c", program], allow=range(256))
    if done.status:
        last = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2]
        raise CheckError(f"the rescue entry lacks modules: {last}", reason="rescue-import")


def _check_libraries(files: Sequence[RootFile], options: Mapping[str, Any]) -> None:
    """Whether each program finds its libraries here, too; the other rules hold for the whole root."""
    target = elf.Target(**{key: options[key] for key in ("machine", "interpreter") if key in options})
    names = frozenset(file.entry.path for file in files)
    programs = [file for file in files if file.entry.type == "file" and elf.is_elf(file.source)]
    problems = [one for file in programs for one in elf.inspect(file.entry.path, file.source, names, target)]
    missing = [f"/{one.path}: {one.detail}" for one in problems if one.problem == "needed"]
    if missing:
        raise CheckError("the rescue entry lacks libraries\n" + "\n".join(missing), reason="elf-rules")
