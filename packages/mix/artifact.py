"""Making package artifacts on the build host: a DESTDIR tree plus recipe metadata becomes manifest + files.

`pack` is the action; `write_artifact` is the one writer behind it and behind every other producer of artifacts (base
files, the daemon). The reader is `packages.mix.manifest` and is re-exported here.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buildsys.job import Job
from common.errors import ArtifactError
from packages.mix.manifest import (
    Artifact,
    Entry,
    Manifest,
    decode,
    hash_file,
    open_artifact,
    path_problem,
    read_manifest,
    sort_key,
    walk,
)

__all__ = [
    "Artifact",
    "Attribute",
    "Metadata",
    "open_artifact",
    "pack",
    "read_manifest",
    "write_artifact",
]

_SPECIAL = 0o7000  # set-uid, set-gid, sticky: only by declaration


@dataclass(frozen=True)
class Attribute:
    """A deviation from "root:root, mode as built": a path's owner, mode and extended attributes (name → bytes)."""

    path: str
    mode: int | None = None
    owner: int = 0
    group: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Metadata:
    """What a recipe says about its package; `exclude` are globs (`**` crosses folders) relative to the tree."""

    name: str
    version: str
    summary: str
    license: str
    homepage: str
    depends: Sequence[str] = ()
    exclude: Sequence[str] = ()
    attributes: Sequence[Attribute] = ()

    @classmethod
    def of(cls, params: Mapping[str, Any]) -> Metadata:
        """From the JSON-like parameters of an action; `attributes` as in recipe.toml (octal mode, base64 xattrs)."""
        attributes = [
            Attribute(
                path=row["path"],
                mode=int(row["mode"], 8) if row.get("mode") is not None else None,
                owner=row.get("owner", 0),
                group=row.get("group", 0),
                xattrs={name: base64.b64decode(text, validate=True) for name, text in row.get("xattrs", {}).items()},
            )
            for row in params.get("attributes", [])
        ]
        return cls(
            name=params["name"],
            version=params["version"],
            summary=params["summary"],
            license=params["license"],
            homepage=params["homepage"],
            depends=tuple(params.get("depends", [])),
            exclude=tuple(params.get("exclude", [])),
            attributes=tuple(attributes),
        )


def pack(job: Job) -> None:
    """Action: input `build` (a DESTDIR tree) and recipe metadata as parameters → artifact in `job.out`.

    Parameters: name, version, summary, license, homepage, depends, exclude, attributes (see `Metadata.of`). Raises
    CheckError: `path-unsafe`, `file-special`, `mode-undeclared`, `attribute-unmatched`, `package-empty`.
    """
    write_artifact(job.inputs["build"], job.out, Metadata.of(job.params))


def write_artifact(tree: Path, out: Path, metadata: Metadata) -> Manifest:
    """Write the artifact of `tree` into the empty folder `out` and return its manifest, as read back."""
    excluded = [glob_pattern(glob) for glob in metadata.exclude]
    attributes = {attribute.path: attribute for attribute in metadata.attributes}
    files = out / "files"
    files.mkdir(mode=0o755)
    entries = []
    for path, info in sorted(_kept(tree, excluded), key=lambda item: sort_key(item[0])):
        entry = _describe(tree / path, path, info, attributes.pop(path, None))
        _copy(tree / path, files / path, entry)
        entries.append(entry)
    if attributes:
        raise ArtifactError(
            f"package {metadata.name}: attributes are declared for {min(attributes)}, which the build did not make",
            reason="attribute-unmatched",
            hint="correct the path in recipe.toml; paths have no leading slash",
        )
    if not entries:
        raise ArtifactError(f"package {metadata.name}: no file is left to package", reason="package-empty")
    manifest = Manifest(
        name=metadata.name,
        version=metadata.version,
        summary=metadata.summary,
        license=metadata.license,
        homepage=metadata.homepage,
        depends=tuple(metadata.depends),
        files=tuple(entries),
    )
    data = manifest.encode()
    # Reading our own output back proves that every artifact in the store passes the strict reader.
    checked = decode(data, f"package {metadata.name}")
    (out / "manifest.json").write_bytes(data)
    return checked


def glob_pattern(glob: str) -> re.Pattern[str]:
    """A path glob as a regular expression: `*` and `?` stay inside a component, `**` crosses them, `[...]` is a set."""
    pattern, index = "", 0
    while index < len(glob):
        if glob.startswith("**/", index):
            pattern, index = pattern + "(?:[^/]+/)*", index + 3
        elif glob.startswith("**", index):
            pattern, index = pattern + ".*", index + 2
        elif glob[index] == "[" and (end := glob.find("]", index + 2)) > 0:
            body = glob[index + 1 : end].replace("\\", "\\\\")
            pattern, index = pattern + f"[{'^' + body[1:] if body[0] == '!' else body}]", end + 1
        else:
            pattern += {"*": "[^/]*", "?": "[^/]"}.get(glob[index], re.escape(glob[index]))
            index += 1
    return re.compile(pattern)


def _kept(tree: Path, excluded: Sequence[re.Pattern[str]]) -> list[tuple[str, os.stat_result]]:
    """What the package keeps. A folder that only exclusion made empty goes as well; one that was built empty stays."""
    kept: dict[str, os.stat_result] = {}
    folders: dict[str, os.stat_result] = {}
    populated: set[str] = set()
    for path, info in walk(tree):
        problem = path_problem(path)
        if problem:
            raise ArtifactError(f"{path!r} {problem}", reason="path-unsafe", hint="the recipe must not install it")
        parent = path.rpartition("/")[0]
        populated.add(parent)
        if any(pattern.fullmatch(path) for pattern in excluded):
            continue
        (folders if stat.S_ISDIR(info.st_mode) else kept)[path] = info
    needed = set(kept) | {path for path in folders if path not in populated}
    for path in list(needed):
        while path := path.rpartition("/")[0]:
            needed.add(path)
    parents = {path: info for path, info in folders.items() if path in needed}
    for path in needed - set(kept) - set(parents):  # excluded itself, yet something below it was not
        parents[path] = os.lstat(tree / path)
    return [*kept.items(), *parents.items()]


def _describe(source: Path, path: str, info: os.stat_result, attribute: Attribute | None) -> Entry:
    mode = stat.S_IMODE(info.st_mode)
    attribute = attribute or Attribute(path)
    if stat.S_ISLNK(info.st_mode):
        return Entry(path, "symlink", 0o777, attribute.owner, attribute.group, target=os.readlink(source))
    if attribute.mode is not None:
        mode = attribute.mode
    elif mode & _SPECIAL:
        raise ArtifactError(
            f"{path}: built with mode {mode:04o}; set-uid, set-gid and sticky bits must be declared",
            reason="mode-undeclared",
            hint="clear the bit in build.sh, or declare it with [[attributes]] in recipe.toml",
        )
    else:
        # The umask of a build must not matter: what is readable is readable by all, what is executable likewise.
        mode = 0o755 if stat.S_ISDIR(info.st_mode) or mode & 0o111 else 0o644
    if stat.S_ISDIR(info.st_mode):
        return Entry(path, "dir", mode, attribute.owner, attribute.group, xattrs=attribute.xattrs)
    if not stat.S_ISREG(info.st_mode):
        raise ArtifactError(f"{path}: is neither file, folder nor symbolic link", reason="file-special")
    digest = hash_file(source)
    return Entry(path, "file", mode, attribute.owner, attribute.group, info.st_size, digest, xattrs=attribute.xattrs)


def _copy(source: Path, target: Path, entry: Entry) -> None:
    if entry.type == "dir":
        target.mkdir(mode=0o755)
    elif entry.type == "symlink":
        target.symlink_to(entry.target)
    else:
        shutil.copyfile(source, target)
        # Contents only: the real mode may forbid reading (0600) and lives in the manifest.
        target.chmod(0o755 if entry.mode & 0o111 else 0o644)
