"""Rules for every ELF file of the image, checked on the build host with pyelftools.

A program must be position independent, use the one dynamic loader of the image, find every library it needs, and be
linked with full RELRO, without executable stack, text relocations, writable code or foreign search paths. A rule can be
waived for a file, with a reason; a waiver that matches nothing is an error, so that waivers do not outlive their cause.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from common.errors import CheckError
from packages.mix.artifact import glob_pattern

MAGIC = b"\x7fELF"
# Where musl's loader looks without a path of its own (ldso/dynlink.c); /lib is a link to usr/lib in the image.
LIBRARY_FOLDERS = ("usr/lib", "usr/local/lib")
# musl resolves these names, whatever follows the dot, to the loader itself (ldso/dynlink.c, load_library).
_BUILT_IN = tuple(f"lib{name}." for name in ("c", "pthread", "rt", "m", "dl", "util", "xnet"))
_PF_X, _PF_W = 1, 2
_DF_TEXTREL, _DF_BIND_NOW, _DF_1_NOW = 0x4, 0x8, 0x1


@dataclass(frozen=True)
class Target:
    """What programs of this image must look like: `machine` as pyelftools spells e_machine, absolute loader path."""

    machine: str = "EM_X86_64"
    interpreter: str = "/lib/ld-musl-x86_64.so.1"


@dataclass(frozen=True)
class Waiver:
    """A rule that does not apply to the files matching `path` (a glob), and why."""

    path: str
    problem: str
    reason: str


@dataclass(frozen=True)
class Problem:
    """A broken rule: image path, the rule's name, and what was found."""

    path: str
    problem: str
    detail: str


@dataclass(frozen=True)
class _Dynamic:
    needed: tuple[str, ...]
    paths: tuple[str, ...]
    flags: int
    flags_1: int
    tags: frozenset[str]


def is_elf(path: Path) -> bool:
    """Whether a regular file starts like an ELF file; reads four bytes."""
    with path.open("rb", buffering=0) as stream:
        return stream.read(4) == MAGIC


def check_image(
    files: Mapping[str, Path], links: Mapping[str, str], target: Target, waivers: Sequence[Waiver] = ()
) -> int:
    """Check every ELF file among `files` (image path → content); return how many there were.

    `links` are the image's symbolic links (path → target). Raises CheckError: `elf-rules` listing each file and
    problem, `elf-waiver-stale` for a waiver that nothing needs.
    """
    names = frozenset(files) | frozenset(links)
    programs = {path: source for path, source in files.items() if is_elf(source)}
    problems = [problem for path in sorted(programs) for problem in inspect(path, programs[path], names, target)]
    unused = set(waivers)
    kept = []
    for problem in problems:
        matching = [one for one in waivers if one.problem == problem.problem and _matches(one.path, problem.path)]
        unused.difference_update(matching)
        if not matching:
            kept.append(problem)
    if kept:
        lines = "\n".join(f"  {row.path}: {row.problem}: {row.detail}" for row in kept)
        raise CheckError(
            f"{len(kept)} broken rules in the image's ELF files\n{lines}",
            reason="elf-rules",
            hint="correct the recipe's compiler or linker flags; a waiver needs path, problem and reason",
        )
    if unused:
        stale = ", ".join(sorted(f"{waiver.path} ({waiver.problem})" for waiver in unused))
        raise CheckError(f"ELF waivers that nothing needs: {stale}", reason="elf-waiver-stale", hint="remove them")
    return len(programs)


def _matches(glob: str, path: str) -> bool:
    return glob_pattern(glob).fullmatch(path) is not None


def inspect(path: str, source: Path, names: frozenset[str], target: Target) -> list[Problem]:
    """The broken rules of one ELF file. `names` are all image paths, for finding the libraries it needs."""
    found: list[tuple[str, str]] = []
    try:
        with source.open("rb") as stream:
            found.extend(_inspect(ELFFile(stream), path, names, target))
    except (ELFError, AssertionError, ValueError, KeyError, IndexError, OverflowError) as error:
        # pyelftools meets a damaged file with any of these.
        found.append(("damaged", str(error) or type(error).__name__))
    return [Problem(path, name, detail) for name, detail in found]


def _inspect(elf: Any, path: str, names: frozenset[str], target: Target) -> Iterable[tuple[str, str]]:
    if elf["e_machine"] != target.machine:
        yield "machine", f"{elf['e_machine']}, expected {target.machine}"
        return
    segments = list(elf.iter_segments())
    kinds = {segment["p_type"] for segment in segments}
    interpreter = next((str(one.get_interp_name()) for one in segments if one["p_type"] == "PT_INTERP"), None)
    if interpreter is not None and interpreter != target.interpreter:
        yield "interpreter", f"{interpreter}, expected {target.interpreter}"
    if elf["e_type"] != "ET_DYN":
        what = "relocatable object" if elf["e_type"] == "ET_REL" else "fixed load address"
        yield "pie", f"{what} ({elf['e_type']})"
        if elf["e_type"] == "ET_REL":
            return
    stack = next((one for one in segments if one["p_type"] == "PT_GNU_STACK"), None)
    if stack is None or stack["p_flags"] & _PF_X:
        yield "stack", "no PT_GNU_STACK" if stack is None else "the stack is executable"
    if any(one["p_type"] == "PT_LOAD" and one["p_flags"] & _PF_X and one["p_flags"] & _PF_W for one in segments):
        yield "wx", "a segment is writable and executable"
    dynamic = _dynamic(segments)
    if "PT_GNU_RELRO" not in kinds:
        yield "relro", "no PT_GNU_RELRO"
    elif dynamic and "DT_JMPREL" in dynamic.tags and not _binds_now(dynamic) and (interpreter or dynamic.needed):
        yield "relro", "partial only: lazy binding keeps the GOT writable (link with -z now)"
    if dynamic:
        yield from _inspect_dynamic(dynamic, path, names, target)


def _inspect_dynamic(dynamic: _Dynamic, path: str, names: frozenset[str], target: Target) -> Iterable[tuple[str, str]]:
    if dynamic.flags & _DF_TEXTREL or "DT_TEXTREL" in dynamic.tags:
        yield "textrel", "text relocations"
    folder = posixpath.dirname(path)
    search = []
    for entry in dynamic.paths:
        expanded = entry.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", f"/{folder}")
        resolved = posixpath.normpath(expanded)
        if not expanded.startswith("/") or not f"{resolved}/".startswith(("/usr/lib/", "/lib/")):
            yield "rpath", f"search path {entry or '(empty)'} leaves /usr/lib"
        search.append(resolved.lstrip("/"))
    for name in dynamic.needed:
        if not _provided(name, [*search, *LIBRARY_FOLDERS], names, target):
            yield "needed", f"{name} is in no package"


def _provided(name: str, folders: Sequence[str], names: frozenset[str], target: Target) -> bool:
    if name.startswith(_BUILT_IN):
        loader = target.interpreter.lstrip("/")
        return loader in names or f"usr/{loader}" in names
    return any(f"{folder}/{name}" in names for folder in folders)


def _binds_now(dynamic: _Dynamic) -> bool:
    return bool(dynamic.flags & _DF_BIND_NOW or dynamic.flags_1 & _DF_1_NOW or "DT_BIND_NOW" in dynamic.tags)


def _dynamic(segments: Sequence[Any]) -> _Dynamic | None:
    segment = next((one for one in segments if one["p_type"] == "PT_DYNAMIC"), None)
    if segment is None:
        return None
    needed: list[str] = []
    paths: list[str] = []
    flags = {"DT_FLAGS": 0, "DT_FLAGS_1": 0}
    tags = set()
    for tag in segment.iter_tags():
        kind = str(tag.entry.d_tag)
        tags.add(kind)
        if kind == "DT_NEEDED":
            needed.append(str(tag.needed))
        elif kind in ("DT_RPATH", "DT_RUNPATH"):
            paths.extend(str(tag.rpath if kind == "DT_RPATH" else tag.runpath).split(":"))
        elif kind in flags:
            flags[kind] = tag.entry.d_val
    return _Dynamic(tuple(needed), tuple(paths), flags["DT_FLAGS"], flags["DT_FLAGS_1"], frozenset(tags))
