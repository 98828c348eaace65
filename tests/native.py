"""The device's C programs (`daemon/native/NAME/`), compiled with this host's gcc for tests.

    SHIM = native("shim")                                  # as on the device: static, optimised
    HOOKED = native("shim", "-DTEST_HOOKS")                # another binary
    CHECKED = native("shim", *SANITIZE)

Binaries are kept under the system's temporary folder by the digest of the sources and the flags.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from buildsys.run import run

SOURCES = Path(__file__).resolve().parents[1] / "daemon" / "native"
# As build.sh has them.
WARNINGS = ("-Wall", "-Wextra", "-Wmissing-prototypes", "-Wstrict-prototypes", "-Wshadow", "-Werror")
FLAGS = ("-std=c11", "-O2", *WARNINGS)
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")


HARNESSES = Path(__file__).resolve().parent / "harness"


@cache
def harness(name: str, *sources: str) -> Path:
    """The path of a reader of one of the programs in a loop (`tests/harness/NAME.c`), sanitized; sources: what else of
    theirs it needs."""
    files = [HARNESSES / f"{name}.c", *(SOURCES / source for source in sources)]
    read = [*files, HARNESSES / "harness.h", *SOURCES.glob("*.h"), *SOURCES.glob("*/*.[ch]")]
    return _compiled(f"harness-{name}", ("gcc", *FLAGS, f"-I{SOURCES}", *SANITIZE), files, sorted(read))


@cache
def native(name: str, *flags: str) -> Path:
    """The path of the compiled program; static unless a sanitizer is wanted, which cannot be."""
    linking = () if any(flag.startswith("-fsanitize") for flag in flags) else ("-static",)
    argv = ("gcc", *FLAGS, *linking, *flags)
    files = sorted([*SOURCES.glob("*.[ch]"), *SOURCES.glob(f"{name}/*.[ch]")])
    return _compiled(name, argv, [path for path in files if path.suffix == ".c"], files)


def _compiled(name: str, argv: Sequence[str], sources: Sequence[Path], read: Sequence[Path]) -> Path:
    digest = hashlib.sha256("\0".join((name, *argv)).encode())
    for path in read:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"mixos-native-{os.getuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    binary = folder / f"{name}-{digest.hexdigest()[:16]}"
    if not binary.exists():
        temporary = folder / f"{binary.name}.{os.getpid()}"
        run([*argv, "-o", temporary, *sources], timeout=300)
        temporary.rename(binary)  # other test processes may do the same at the same time
    return binary
