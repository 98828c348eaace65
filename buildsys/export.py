"""Put the results of an image build where people look: out/."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from buildsys.events import Note
from buildsys.files import atomic_write, copy_sparse
from buildsys.kernelsource import describe
from buildsys.revision import Revision
from buildsys.session import Session
from buildsys.store import Result
from common import units
from common.settings.model import login_problem

RECORD = ".exported.json"


@dataclass(frozen=True)
class Exported:
    """The files of an exported image."""

    image: Path
    manifest: Path
    kernel_config: Path
    size_report: Path


# Actions whose outputs end up in out/, or are counted there; the last two where the image has a rescue entry.
SHOWN = ("disk", "rootfs", "kernel", "kernel-config", "root-image", "initramfs", "rescue")


def export(session: Session, results: dict[str, Result], begun: Revision) -> Exported:
    """Copy the image and write its manifest, kernel configuration and size report. Cheap when nothing changed.

    begun: what the checkout was when the build began.
    """
    project = session.project
    if problem := login_problem(project.settings.login_until, datetime.now(UTC).date()):
        where = "set a key in [settings.ssh], or flash with a preseed that has one"
        session.executor.sink(Note("warning", f"{problem}; {where}"))
    out = project.out
    out.mkdir(parents=True, exist_ok=True)
    files = Exported(project.image_file, out / "manifest.json", out / "kernel.config", out / "sizes.txt")
    shown = [name for name in SHOWN if name in results]
    wanted = {name: results[name].output for name in shown}
    revision = Revision.of(project)
    if revision != begun:
        revision = Revision(begun.commit, ("what changed while it was built",))
    if _is_current(files, wanted, out / RECORD):
        _note(files.manifest, revision)
        return files
    results = session.sound(shown)  # the store's trees were not read since they were written
    wanted = {name: results[name].output for name in shown}
    (out / RECORD).unlink(missing_ok=True)
    trees = {name: session.executor.store.tree(digest) for name, digest in wanted.items()}
    copy_sparse(next(trees["disk"].glob("*.img")), files.image)
    manifest = {**_manifest(session, trees), "revision": revision.as_json()}
    atomic_write(files.manifest, json.dumps(manifest, indent=1).encode() + b"\n")
    atomic_write(files.kernel_config, (trees["kernel-config"] / "config").read_bytes())
    atomic_write(files.size_report, _sizes(manifest, trees, files.image).encode())
    atomic_write(out / RECORD, json.dumps({"outputs": wanted, "image": _identity(files.image)}).encode())
    return files


def _identity(path: Path) -> list[int]:
    info = path.stat()
    return [info.st_size, info.st_mtime_ns, info.st_ino]


def _is_current(files: Exported, wanted: dict[str, str], record: Path) -> bool:
    try:
        known = json.loads(record.read_bytes())
        others = (files.manifest, files.kernel_config, files.size_report)
        return known == {"outputs": wanted, "image": _identity(files.image)} and all(path.is_file() for path in others)
    except (OSError, ValueError):
        return False


def _note(manifest: Path, revision: Revision) -> None:
    """The same image may come from another commit."""
    known = json.loads(manifest.read_bytes())
    if known.get("revision") != json.loads(json.dumps(revision.as_json())):
        atomic_write(manifest, json.dumps(known | {"revision": revision.as_json()}, indent=1).encode() + b"\n")


def _manifest(session: Session, trees: dict[str, Path]) -> dict[str, Any]:
    """Every file of the root with hash, owner and package; the partitions; the kernel and where it came from."""
    root = json.loads((trees["rootfs"] / "manifest.json").read_bytes())
    disk = json.loads((trees["disk"] / "image.json").read_bytes())
    report = json.loads((trees["kernel-config"] / "report.json").read_bytes())
    kernel = {
        **describe(session.kernel),
        "release": (trees["kernel"] / "release").read_text().strip(),
        "waived": report.get("waived", []),
    }
    return {"format": 1, "kernel": kernel, "instead": dict(session.instead), "image": disk, "root": root}


def _sizes(manifest: dict[str, Any], trees: dict[str, Path], image: Path) -> str:
    """The size report: packages by size, then the artefacts they end up in."""
    sums: dict[str, int] = {}
    for entry in manifest["root"]["files"]:
        sums[entry["package"]] = sums.get(entry["package"], 0) + int(entry.get("size") or 0)
    lines = [f"{units.size(size):>12}  {name}" for name, size in sorted(sums.items(), key=lambda item: -item[1])]
    root = next(path for path in trees["root-image"].iterdir() if path.name.startswith("root."))
    lines += [
        "",
        f"{units.size(sum(sums.values())):>12}  root file system, unpacked",
        f"{units.size(root.stat().st_size):>12}  root file system, compressed",
        f"{units.size((trees['kernel'] / 'bzImage').stat().st_size):>12}  kernel",
        *_rescue_sizes(trees),
        f"{units.size(image.stat().st_size):>12}  disk image ({units.size(image.stat().st_blocks * 512)} on disk)",
    ]
    return "\n".join(lines) + "\n"


def _rescue_sizes(trees: dict[str, Path]) -> list[str]:
    if "rescue" not in trees:
        return []
    unpacked = sum(int(row.split(" ", 1)[0]) for row in (trees["initramfs"] / "files").read_text("utf-8").splitlines())
    whole = (trees["rescue"] / "rescue.efi").stat().st_size
    return [
        f"{units.size(unpacked):>12}  rescue entry, its files in memory",
        f"{units.size(whole):>12}  rescue entry, with the kernel",
    ]
