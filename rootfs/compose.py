"""Composing the root tree from package artifacts, and from nothing else.

Every artifact is verified against its manifest, conflicts between packages are errors that name both, the ELF rules
hold for the whole image, and run-time dependencies must be present. The result is the tree (contents) and a root
manifest (the authority on owner, mode, attributes, and on which package a path came from).
"""

from __future__ import annotations

import base64
import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from buildsys.job import Job
from common.errors import CheckError
from packages.mix import elf
from packages.mix.artifact import open_artifact
from packages.mix.manifest import Artifact, Entry, sort_key

FORMAT = 1


@dataclass(frozen=True)
class RootFile:
    """A path of the image: what it is, which package it came from, and where its content lies in the build."""

    entry: Entry
    package: str
    source: Path

    def as_json(self) -> dict[str, object]:
        """The row of the root manifest."""
        return {**self.entry.as_json(), "package": self.package}


def compose(job: Job) -> None:
    """Action: artifacts → `files/` (tree) and `manifest.json`.

    Inputs: the artifacts named by parameter `packages` (a list of input names). Parameters: `version` (of the image),
    optional `elf` ({machine, interpreter, waivers: [{path, problem, reason}]}). Raises CheckError: reasons of the
    artifact reader, `file-conflict`, `package-missing`, `package-twice`, and those of `packages.mix.elf`.
    """
    artifacts = [open_artifact(job.inputs[name]) for name in job.params["packages"]]
    check_dependencies([artifact.manifest for artifact in artifacts])
    files = merge(artifacts)
    checked = check_elf(files, job.params.get("elf", {}))
    write_tree(files, job.out / "files")
    document = {
        "format": FORMAT,
        "version": job.params["version"],
        "epoch": job.epoch,
        "elf_files": checked,
        "packages": [
            {
                "name": one.manifest.name,
                "version": one.manifest.version,
                "license": one.manifest.license,
                "homepage": one.manifest.homepage,
                "files": len(one.manifest.files),
                "size": sum(entry.size for entry in one.manifest.files),
            }
            for one in sorted(artifacts, key=lambda artifact: artifact.manifest.name)
        ],
    }
    rows = ",\n".join(json.dumps(file.as_json(), ensure_ascii=False) for file in files)
    head = json.dumps(document, ensure_ascii=False, indent=1)[:-2]
    (job.out / "manifest.json").write_text(f'{head},\n "files": [\n{rows}\n]}}\n', encoding="utf-8")


def check_dependencies(manifests: Sequence[Any]) -> None:
    """Every package once, and every dependency present. Raises CheckError."""
    names: set[str] = set()
    for manifest in manifests:
        if manifest.name in names:
            raise CheckError(f"package {manifest.name} is in the image twice", reason="package-twice")
        names.add(manifest.name)
    for manifest in manifests:
        missing = sorted(set(manifest.depends) - names)
        if missing:
            raise CheckError(
                f"package {manifest.name} depends on {', '.join(missing)}, not in the image",
                reason="package-missing",
                hint="add it to the packages of mixos.toml, or correct `depends` in the recipe",
            )


def merge(artifacts: Sequence[Artifact]) -> list[RootFile]:
    """The files of all packages, sorted by path. A folder may be in several packages when all say the same of it.

    Raises CheckError `file-conflict` naming the path and both packages, also when one package puts files below a path
    that another made a symbolic link (as /bin is): such a file would land where its package did not say.
    """
    merged: dict[str, RootFile] = {}
    for artifact in artifacts:
        for entry in artifact.manifest.files:
            new = RootFile(entry, artifact.manifest.name, artifact.source(entry))
            old = merged.setdefault(entry.path, new)
            if old is not new and not (entry.type == "dir" and entry == old.entry):
                raise _conflict(old, new)
    return [merged[path] for path in sorted(merged, key=sort_key)]


def _conflict(old: RootFile, new: RootFile) -> CheckError:
    what = ", ".join(
        f"{file.package} ({file.entry.type}, {file.entry.mode:04o}, {file.entry.uid}:{file.entry.gid})"
        for file in (old, new)
    )
    return CheckError(
        f"/{new.entry.path} is in two packages that do not agree: {what}",
        reason="file-conflict",
        hint="exclude the file in one of the recipes; programs belong below usr/, as /bin, /sbin and /lib are links",
    )


def check_elf(files: Sequence[RootFile], options: Mapping[str, Any]) -> int:
    """Apply the ELF rules to the image; returns the number of ELF files."""
    target = elf.Target(**{key: options[key] for key in ("machine", "interpreter") if key in options})
    return elf.check_image(
        {file.entry.path: file.source for file in files if file.entry.type == "file"},
        {file.entry.path: file.entry.target for file in files if file.entry.type == "symlink"},
        target,
        [elf.Waiver(**row) for row in options.get("waivers", [])],
    )


def write_tree(files: Sequence[RootFile], root: Path) -> None:
    """Copy the contents; modes are only "executable or not", the manifest holds the real ones."""
    root.mkdir(mode=0o755)
    for file in files:
        target = root / file.entry.path
        if file.entry.type == "dir":
            target.mkdir(mode=0o755)
        elif file.entry.type == "symlink":
            target.symlink_to(file.entry.target)
        else:
            shutil.copyfile(file.source, target)
            target.chmod(0o755 if file.entry.mode & 0o111 else 0o644)


def read_root(path: Path) -> list[RootFile]:
    """The files of a composed root (the output folder of `compose`), for packing and reports."""
    document = json.loads((path / "manifest.json").read_bytes())
    return [_root_file(row, path / "files") for row in document["files"]]


def _root_file(row: Mapping[str, Any], files: Path) -> RootFile:
    known = {field.name for field in dataclasses.fields(Entry)}
    values = {key: value for key, value in row.items() if key in known}
    values["mode"] = int(row["mode"], 8)
    values["xattrs"] = {name: base64.b64decode(text) for name, text in row.get("xattrs", {}).items()}
    return RootFile(Entry(**values), row["package"], files / row["path"])
