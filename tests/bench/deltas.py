"""`python -m tests.bench.deltas`: what an update of real images costs, beside other tools on the same pairs of files.

Trees of roots and UKIs come from the store; changed ones are made of the newest: one file of the daemon, one package
(another build of it in the store), another kernel, and the oldest root as the one before the newest ("everything").
A row is a root and a UKI, each from old to new; bytes, CPU seconds and the larger peak of memory are of both together.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import py_compile
import re
import shutil
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from backports import zstd

from buildsys.files import atomic_write
from buildsys.job import Job
from buildsys.project import Project
from buildsys.run import find_tool
from buildsys.run import run as start
from buildsys.store import Result, Store
from common.efi.uki import read_uki
from kernel import payload
from rootfs import pack, squashfs_write
from rootfs.compose import RootFile, read_root
from tests import hostpackages

ROWS = ("daemon", "package", "kernel", "everything")
FORMATS = ("squashfs-128K", "squashfs-64K", "erofs-16K", "erofs-64K")
BLOCK = 4096
TOOL = Path(__file__).with_name("deltatool.py")
Pair = tuple[Path, Path]  # old and new
EDITED = "usr/lib/mixos/python/daemon/core/tasks.py"


@dataclass(frozen=True)
class Cost:
    """What one tool needed for one row. Times are CPU seconds, memory is KiB of the largest process."""

    row: str
    format: str
    tool: str
    image: int
    size: int
    make: float = 0
    make_memory: int = 0
    apply: float = 0
    apply_memory: int = 0


@dataclass(frozen=True)
class Used:
    """CPU seconds and peak resident KiB of a process and all that it waited for."""

    cpu: float = 0
    memory: int = 0

    def __add__(self, other: Used) -> Used:
        return Used(self.cpu + other.cpu, max(self.memory, other.memory))


LAUNCHER = """
import os, sys
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
_, status, usage = os.wait4(os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
print(usage.ru_utime + usage.ru_stime, usage.ru_maxrss)
sys.exit(status != 0)
"""


def run(*command: object) -> Used:
    """Run a program to its end and say what it used. A bare interpreter starts it: the peak of a process begins with
    what its parent had when it was forked, here 7 MiB."""
    words = [str(find_tool(str(command[0]))), *map(str, command[1:])]
    result = start(
        [sys.executable, "-E", "-S", "-c", LAUNCHER, *words], env={"PYTHONPATH": str(hostpackages.ROOT)}, split=True
    )
    cpu, memory = result.stdout.split()
    return Used(float(cpu), int(memory))


# --- the files --------------------------------------------------------------------------------------------------------


def results(store: Store, action: str) -> list[Path]:
    """The trees of an action in the store, newest first."""
    return [store.tree(result.output) for result in store.results() if _is(result, action)]


def roots(store: Store, work: Path) -> list[Path]:
    """The newest root and the oldest: the same ones whenever something is measured in a folder, since builds go on."""
    kept = work / "roots.json"
    if not kept.exists():
        found = results(store, "rootfs")
        atomic_write(kept, json.dumps([str(found[0]), str(found[-1])]).encode())
    return [Path(name) for name in json.loads(kept.read_text())]


def _is(result: Result, action: str) -> bool:
    return result.action == action


def changed(files: Sequence[RootFile], contents: dict[str, Path], package: str = "") -> list[RootFile]:
    """The tree with the content of some files replaced."""
    found: list[RootFile] = []
    for file in files:
        if file.entry.path in contents and (not package or file.package == package):
            data = contents[file.entry.path].read_bytes()
            entry = replace(file.entry, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            file = replace(file, entry=entry, source=contents[file.entry.path])
        found.append(file)
    return found


def edited(files: Sequence[RootFile], work: Path) -> dict[str, Path]:
    """A fix in one module of the daemon, with its byte code, and the version that each release has."""
    sources = {file.entry.path: file.source for file in files}
    module = work / "module.py"
    module.write_text(sources[EDITED].read_text() + "\n\ndef fixed(value: int) -> int:\n    return value * 2 + 1\n")
    folder, _, name = EDITED.rpartition("/")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    py_compile.compile(str(module), str(work / "module.pyc"), f"/{EDITED}", invalidation_mode=mode)
    code = next(path for path in sources if path.startswith(f"{folder}/__pycache__/{name[:-2]}cpython-"))
    return {EDITED: module, code: work / "module.pyc", **version(files, work)}


def version(files: Sequence[RootFile], work: Path) -> dict[str, Path]:
    """The file that says which release it is."""
    (found,) = [file for file in files if file.entry.path.endswith("/os-release") and file.entry.type == "file"]
    path = work / "os-release"
    path.write_text(found.source.read_text().replace("0.1.0", "0.1.1"))
    return {found.entry.path: path}


def rebuilt(store: Store, files: Sequence[RootFile]) -> tuple[str, dict[str, Path]]:
    """A package of which the store has another build with the same paths and other bytes."""
    sums = {file.entry.path: file.entry.sha256 for file in files}
    for package in ("busybox", "expat", "zlib", "sqlite", "openssl", "mixos-native"):
        for tree in results(store, f"package-{package}"):
            rows = [path for path in tree.rglob("*") if path.is_file() and not path.is_symlink()]
            for top in (tree / "files", tree):
                found = {str(path.relative_to(top)): path for path in rows if path.is_relative_to(top)}
                other = {
                    path: source
                    for path, source in found.items()
                    if path in sums and hashlib.sha256(source.read_bytes()).hexdigest() != sums[path]
                }
                if other:
                    return package, other
    raise RuntimeError("the store has no second build of a package")


def images(store: Store, work: Path, row: str, kind: str) -> Iterator[Pair]:
    """(old, new) of the root and of the UKI, made once."""
    folder = work / kind
    folder.mkdir(parents=True, exist_ok=True)
    (newest, oldest), ukis = roots(store, work), results(store, "uki")
    files = read_root(newest)
    base, old, new = folder / "base", folder / f"{row}.old", folder / f"{row}.new"
    if not base.exists():
        image(files, base, kind)
    if row == "everything":
        image(read_root(oldest), old, kind)
        yield old, base
    else:
        if row == "daemon":
            other = edited(files, work)
        elif row == "package":
            other = {**rebuilt(store, files)[1], **version(files, work)}
        else:
            other = version(files, work)
        image(changed(files, other), new, kind)
        yield base, new
    yield loaders(ukis, work, row in ("kernel", "everything"))


def loaders(ukis: Sequence[Path], work: Path, kernel: bool) -> Pair:
    """Two UKIs: the newest one and, in it, the kernel of the oldest build of that release which is another, or another
    root hash in the command line."""
    old, new, other = work / "old.efi", work / "new.efi", work / "hash.efi"
    if not other.exists():
        data = (ukis[0] / "mixos.efi").read_bytes()
        start, linux = _kernel(data)
        images = ((path / "mixos.efi").read_bytes() for path in reversed(ukis))
        kernels = (framed(_kernel(one)[1]) for one in images if read_uki(one).uname == read_uki(data).uname)
        before = next(parts for parts in kernels if parts[1] != framed(linux)[1])
        old.write_bytes(data[:start] + b"".join(before) + data[start + len(linux) :])
        new.write_bytes(data)
        words = read_uki(data).cmdline.replace('"', " ").split()
        digest = next(word for word in words if re.fullmatch("[0-9a-f]{64}", word)).encode()
        other.write_bytes(data.replace(digest, hashlib.sha256(digest).hexdigest().encode()))
    return (old, new) if kernel else (new, other)


def _kernel(data: bytes) -> tuple[int, bytes]:
    """Where the kernel in a UKI begins, and the kernel."""
    (linux,) = [part for part in read_uki(data).sections if part.name == ".linux"]
    return linux.offset, data[linux.offset : linux.offset + linux.size]


def framed(kernel: bytes) -> tuple[bytes, bytes, bytes]:
    """A kernel as it is compressed today, whenever it was built: what is before the frames, the frames, what is behind
    them (Linux, Documentation/arch/x86/boot.rst)."""
    offset, length = struct.unpack_from("<II", kernel, 0x248)
    start = 512 * (kernel[0x1F1] + 1) + offset
    end = start + length - 4  # its size unpacked, behind the frames
    out = io.BytesIO()
    payload.compress(io.BytesIO(zstd.decompress(kernel[start:end])), out)
    size = struct.pack("<I", len(out.getvalue()) + 4)
    return kernel[:0x24C] + size + kernel[0x250:start], out.getvalue(), kernel[end:]


def image(files: Sequence[RootFile], path: Path, kind: str) -> None:
    """The root file system, as the product makes it but for the size of its blocks."""
    if path.exists():
        return
    name, _, size = kind.partition("-")
    block = int(size[:-1]) << 10
    scratch = path.with_suffix(".work")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    made = scratch / "image"
    if name == "squashfs":
        squashfs_write.write_squashfs(files, made, epoch=0, block=block, level=pack.ZSTD_LEVEL, jobs=2)
    else:
        pack.EROFS_CLUSTER = block  # type: ignore[misc]
        pack._erofs(Job({}, scratch, scratch, {}, 0, 2), files, made)
    made.replace(path)
    shutil.rmtree(scratch)


# --- the tools --------------------------------------------------------------------------------------------------------


def device(work: Path) -> list[object]:
    """The interpreter that a device applies plans with, of the newest root: its C library gives memory back."""
    usr = Path(json.loads((work / "roots.json").read_text())[0]) / "files/usr"
    (python,) = (usr / "bin").glob("python3.[0-9]*[0-9]")
    return ["env", f"PYTHONHOME={usr}", usr / "lib/libc.so", "--library-path", usr / "lib", python, "-sB"]


def ours(pair: Pair, work: Path) -> tuple[int, Used, Used]:
    """Our windows."""
    old, new = pair
    plan, parts, out = work / "plan", work / "payload", work / "out"
    out.unlink(missing_ok=True)
    made = run(sys.executable, TOOL, "make", new, old, plan, parts)
    applied = run(*device(work), TOOL, "apply", plan, old, parts, out)
    same(new, out)
    return plan.stat().st_size + parts.stat().st_size, made, applied


def whole(pair: Pair, work: Path) -> tuple[int, Used, Used]:
    """Our windows without a source: what a device fetches that has none of the old versions."""
    plan, parts, out = work / "plan", work / "payload", work / "out"
    out.unlink(missing_ok=True)
    made = run(sys.executable, TOOL, "make", pair[1], "-", plan, parts)
    applied = run(*device(work), TOOL, "apply", plan, "-", parts, out)
    same(pair[1], out)
    return plan.stat().st_size + parts.stat().st_size, made, applied


def zstd_patch(pair: Pair, work: Path) -> tuple[int, Used, Used]:
    """`zstd --patch-from`, with the new file's size as its window."""
    return _packed(pair[1], work, f"--patch-from={pair[0]}")


def plain(pair: Pair, work: Path) -> tuple[int, Used, Used]:
    """The whole file, compressed: what there is to send without any delta."""
    return _packed(pair[1], work)


def _packed(new: Path, work: Path, *options: str) -> tuple[int, Used, Used]:
    packed, out = work / "packed", work / "out"
    made = run("zstd", "-q", "-f", "-19", "--long=27", "-T1", *options, new, "-o", packed)
    applied = run("zstd", "-q", "-f", "-d", "--long=27", *options, packed, "-o", out)
    same(new, out)
    return packed.stat().st_size, made, applied


def xdelta(pair: Pair, work: Path) -> tuple[int, Used, Used]:
    """xdelta3 with its best level and its second compression."""
    packed, out = work / "packed", work / "out"
    window = max(1 << 26, pair[0].stat().st_size)
    made = run("xdelta3", "-q", "-f", "-e", "-9", "-A", "-S", "lzma", "-B", window, "-s", *pair, packed)
    applied = run("xdelta3", "-q", "-f", "-d", "-B", window, "-s", pair[0], packed, out)
    same(pair[1], out)
    return packed.stat().st_size, made, applied


def casync(pair: Pair, work: Path) -> tuple[int, Used, Used]:
    """casync with its own sizes of chunks: packed chunks that the old file has not, and the index."""
    stores = [work / "old.castr", work / "new.castr"]
    for store in stores:
        shutil.rmtree(store, ignore_errors=True)
    run("casync", "make", f"--store={stores[0]}", work / "old.caibx", pair[0])
    made = run("casync", "make", f"--store={stores[1]}", work / "new.caibx", pair[1])
    known = {path.name for path in stores[0].rglob("*.cacnk")}
    size = sum(path.stat().st_size for path in stores[1].rglob("*.cacnk") if path.name not in known)
    out = work / "out"
    out.unlink(missing_ok=True)
    applied = run("casync", "extract", f"--store={stores[1]}", f"--seed={pair[0]}", work / "new.caibx", out)
    same(pair[1], out)
    return size + (work / "new.caibx").stat().st_size, made, applied


def blocks(pair: Pair, work: Path) -> tuple[int, Used, Used]:
    """Blocks of 4 KiB by their hash, as RAUC's adaptive method: those that the old file has not, packed together, and
    an index of 32 bytes for each block. Counted, not applied."""
    sums = [[hashlib.sha256(data).digest() for data in _blocks(path)] for path in pair]
    known = set(sums[0])
    missing = work / "missing"
    missing.write_bytes(b"".join(d for d, s in zip(_blocks(pair[1]), sums[1], strict=True) if s not in known))
    run("zstd", "-q", "-f", "-19", "--long=27", "-T1", missing, "-o", work / "packed")
    return (work / "packed").stat().st_size + 32 * len(sums[1]), Used(), Used()


def _blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(BLOCK):
            yield data


def same(new: Path, out: Path) -> None:
    """Raise RuntimeError unless two files are the same."""
    if new.read_bytes() != out.read_bytes():
        raise RuntimeError(f"{out} is not {new}")


Measured = Callable[[Pair, Path], tuple[int, Used, Used]]
TOOLS: dict[str, Measured] = {
    "mixos": ours,
    "mixos-whole": whole,
    "zstd-patch": zstd_patch,
    "xdelta3": xdelta,
    "casync": casync,
    "blocks-4K": blocks,
    "plain": plain,
}


# --- the table --------------------------------------------------------------------------------------------------------


def main() -> int:
    """Measure what is asked for and has not been measured in the same folder before."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.deltas", description=__doc__)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=tuple(TOOLS))
    parser.add_argument("--work", type=Path, default=hostpackages.ROOT / "out" / "deltas", help="folder of files")
    options = parser.parse_args()
    hostpackages.ensure(hostpackages.ROOT / "ci" / "bench-packages", ["deltas"])
    options.work.mkdir(parents=True, exist_ok=True)
    journal = options.work / "costs.json"
    costs = [Cost(**row) for row in json.loads(journal.read_text())] if journal.exists() else []
    store = Store(Project.at(hostpackages.ROOT).cache / "store")
    for kind in options.formats:
        for row in options.rows:
            pairs = list(images(store, options.work, row, kind))
            for tool in options.tools:
                if any((one.row, one.format, one.tool) == (row, kind, tool) for one in costs):
                    continue
                print(f"{kind} {row} {tool}", file=sys.stderr, flush=True)
                costs.append(measured(row, kind, tool, pairs, options.work))
                atomic_write(journal, json.dumps([asdict(cost) for cost in costs], indent=1).encode())
    print(table(costs))
    return 0


def measured(row: str, kind: str, tool: str, pairs: Sequence[Pair], work: Path) -> Cost:
    """One row of the table."""
    size, made, applied = 0, Used(), Used()
    for pair in pairs:
        more, make, apply = TOOLS[tool](pair, work)
        size, made, applied = size + more, made + make, applied + apply
    image = sum(new.stat().st_size for _, new in pairs)
    return Cost(row, kind, tool, image, size, made.cpu, made.memory, applied.cpu, applied.memory)


def table(costs: Sequence[Cost]) -> str:
    """As Markdown, in the order of the rows."""
    lines = [
        "| image | change | tool | bytes | of the image | making: CPU s | MiB | applying: CPU s | MiB |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    order = {name: number for number, name in enumerate((*FORMATS, *ROWS, *TOOLS))}
    for one in sorted(costs, key=lambda cost: (order[cost.format], order[cost.row], order[cost.tool])):
        share = f"{100 * one.size / one.image:.3f} %"
        making = f"{one.make:.1f} | {one.make_memory / 1024:.0f}"
        applying = f"{one.apply:.2f} | {one.apply_memory / 1024:.1f}"
        lines.append(f"| {one.format} | {one.row} | {one.tool} | {one.size:,} | {share} | {making} | {applying} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
