"""How long builds take and how large their results are."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from buildsys.project import Project
from buildsys.run import run
from buildsys.store import Result, Store
from tests.bench.figures import Figure

MIB = 1 << 20
REPEATS = 3
LEFT_OUT = (".git", ".venv", "out", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis")
CHANGED_FILE = Path("daemon/linux/facts.py")
_KEPT = ("MIXOS_*", "XDG_CACHE_HOME", "*_proxy", "PIP_*")


def build(root: Path) -> float:
    """`mixos build` in a checkout; wall seconds."""
    began = time.monotonic()
    run([Path(sys.executable).with_name("mixos"), "-C", root, "build"], inherit=_KEPT)
    return time.monotonic() - began


def cold(project: Project) -> list[Figure]:
    """Seconds of each step when it was last really built, from the store."""
    newest: dict[str, Result] = {}
    for result in Store(project.cache / "store").results():
        newest.setdefault(result.action, result)
    rows = sorted(newest.values(), key=lambda result: -result.seconds)
    group = "cold build, seconds of each step (recorded when it ran, other steps beside it)"
    total = Figure(group, "all steps one after another", round(sum(row.seconds for row in rows), 1), "s")
    return [*(Figure(group, row.action, row.seconds, "s") for row in rows if row.seconds >= 1), total]


def warm(project: Project) -> list[Figure]:
    """A build with nothing to do, and one after a change in one file of the daemon."""
    build(project.root)
    nothing = [build(project.root) for _ in range(REPEATS)]
    with copy_of(project) as copy:
        build(copy)  # only fills its out/
        changed = []
        for number in range(REPEATS):
            with (copy / CHANGED_FILE).open("a") as file:
                file.write(f"\n_CHANGED = {time.time_ns()} + {number}\n")
            changed.append(build(copy))
    group = f"warm build, wall clock, median of {REPEATS}"
    return [
        Figure(group, "nothing changed", round(statistics.median(nothing), 2), "s", 1),
        Figure(group, "one daemon file changed → new image", round(statistics.median(changed), 2), "s", 15),
    ]


@contextmanager
def copy_of(project: Project) -> Iterator[Path]:
    """A copy of the checkout that may be changed; it shares the cache."""
    with tempfile.TemporaryDirectory(prefix="mixos-bench-") as folder:
        copy = Path(folder, "checkout")
        shutil.copytree(project.root, copy, symlinks=True, ignore=shutil.ignore_patterns(*LEFT_OUT))
        yield copy


def sizes(project: Project) -> list[Figure]:
    """Sizes of the kernel, the compressed root and the image."""
    store = Store(project.cache / "store")
    group = "size"
    found: list[Figure] = []
    for name, action, pattern, budget in (
        ("kernel (bzImage)", "kernel", "bzImage", None),
        ("unified kernel image", "uki", "*.efi", None),
        ("root file system, compressed", "root-image", "root.*", 64.0),
    ):
        result = store.latest(action)
        path = next(store.tree(result.output).glob(pattern), None) if result is not None else None
        if path is not None:
            found.append(Figure(group, name, round(path.stat().st_size / MIB, 2), "MiB", budget))
    image = project.image_file.stat()
    note = f"{image.st_blocks * 512 / MIB:.0f} MiB of it are not holes"
    return [*found, Figure(group, "disk image", round(image.st_size / MIB, 2), "MiB", note=note)]
