"""The device's C programs (`daemon/native/NAME.c`), compiled with this host's gcc for tests.

    SHIM = native("shim")                                  # as on the device: static, optimised
    HOOKED = native("shim", "-DTEST_HOOKS")                # another binary
    CHECKED = native("shim", *SANITIZE)

Binaries are kept under the system's temporary folder by the digest of the sources (NAME*.c, NAME*.h) and the flags.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from functools import cache
from pathlib import Path

from buildsys.run import run

SOURCES = Path(__file__).resolve().parents[1] / "daemon" / "native"
FLAGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", "-O2")
SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g")


@cache
def native(name: str, *flags: str) -> Path:
    """The path of the compiled program; static unless a sanitizer is wanted, which cannot be."""
    linking = () if any(flag.startswith("-fsanitize") for flag in flags) else ("-static",)
    argv = ("gcc", *FLAGS, *linking, *flags)
    digest = hashlib.sha256("\0".join((name, *argv)).encode())
    for path in sorted(SOURCES.glob(f"{name}*.[ch]")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    folder = Path(tempfile.gettempdir()) / f"mixos-native-{os.getuid()}"
    folder.mkdir(mode=0o755, exist_ok=True)
    binary = folder / f"{name}-{digest.hexdigest()[:16]}"
    if not binary.exists():
        temporary = folder / f"{binary.name}.{os.getpid()}"
        run([*argv, "-o", temporary, SOURCES / f"{name}.c"], timeout=300)
        temporary.rename(binary)  # other test processes may do the same at the same time
    return binary
