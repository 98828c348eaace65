"""Making and applying plans in a process of their own, which loads nothing else: what `tests.bench.deltas` measures.

deltatool.py make NEW OLD PLAN PAYLOAD [LEVEL]      OLD: a file, or - for none
deltatool.py apply PLAN OLD PAYLOAD OUT
"""

import os
import sys
from pathlib import Path

from common.bundle import windows


def make(new: str, old: str, plan: str, payload: str, level: str = "19") -> None:
    """Write a plan and its payload, and beside the plan the hashes of the windows."""
    from common.bundle import plan as maker

    data = Path(new).read_bytes()
    out = maker.Payload()
    source = None if old == "-" else Path(old).read_bytes()
    made = maker.make_plan(maker.parse(data), source, out, len(os.sched_getaffinity(0)), int(level))
    Path(plan).write_bytes(made)
    Path(payload).write_bytes(b"".join(out.pieces))
    target = windows.Target.of(data)
    Path(f"{plan}.windows").write_text("\n".join([str(target.size), *(digest.hex() for digest in target.windows)]))


def apply(plan: str, old: str, payload: str, out: str) -> None:
    """Make OUT as a device does, reading with pread and writing with pwrite."""
    size, *digests = Path(f"{plan}.windows").read_text().split()
    target = windows.Target(int(size), tuple(bytes.fromhex(digest) for digest in digests))
    files = [os.open(name, flags, 0o600) for name, flags in ((payload, os.O_RDONLY), (out, os.O_RDWR | os.O_CREAT))]
    source = os.open("/dev/null" if old == "-" else old, os.O_RDONLY)
    os.ftruncate(files[1], target.size)
    windows.apply(
        windows.read_plan(Path(plan).read_bytes()),
        target,
        range(len(target.windows)),
        lambda offset, length: os.pread(source, length, offset),
        lambda offset, length: os.pread(files[0], length, offset),
        lambda offset, data: None if os.pwrite(files[1], data, offset) == len(data) else sys.exit("short write"),
    )


if __name__ == "__main__":
    {"make": make, "apply": apply}[sys.argv[1]](*sys.argv[2:])
