"""Host side: the tree that the `daemon` package is made of (this file itself is not installed).

Only what the device runs goes in: this folder, `common`, and the device-safe part of `packages.mix`.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from buildsys.job import Job
from buildsys.run import run
from common.errors import BuildError
from daemon.parts.firewall import rules
from daemon.parts.firewall.policy import Source, default_text, resolve

FIREWALL = "usr/lib/mixos/firewall.json"
LIBRARY = "usr/lib/mixos/python"
MODULES: Mapping[str, Sequence[str]] = {
    "packages": ("__init__.py", "mix/__init__.py", "mix/manifest.py"),
}
PROGRAMS = {
    "mixosd": "usr/bin",
    "mixctl": "usr/bin",
    "mixos-console": "usr/libexec",
    "mixos-fetch": "usr/libexec",
    "mixos-firmware": "usr/libexec",
    "mixos-firstboot": "usr/libexec",
    "mixos-floor": "usr/libexec",
    "mixos-handover": "usr/libexec",
    "mixos-preseed": "usr/libexec",
    "mixos-release": "usr/libexec",
    "mixos-slots": "usr/libexec",
}
# Folder of data below daemon/ → where the device has it. Other *.toml lie beside the modules that read them.
DATA = {
    "units": "usr/lib/mixos/units",
    "linux/sandbox/profiles": "usr/lib/mixos/profiles",
    "dbus": "usr/share/dbus-1",
}


def install(job: Job) -> None:
    """Action: repository folders → DESTDIR tree for `packages.mix.artifact:pack`.

    Inputs: `common`, `daemon`, `packages` (folders of this repository); optional `python` (output of recipe
    cpython) together with `musl` and the libraries it needs, to compile byte code with the target's interpreter;
    without them only sources are installed, which costs start-up time on the device, since the root is read-only there.
    Raises BuildError `module-missing`.
    """
    library = job.out / LIBRARY
    daemon = job.inputs["daemon"]
    for path in sorted(daemon.rglob("*")):
        inner = path.relative_to(daemon)
        if path.is_dir() or inner.parts[0] in ("bin", "native") or inner == Path("install.py"):
            continue
        place = DATA.get(os.fspath(inner.parent))
        _copy(path, job.out / place / inner.name if place else library / "daemon" / inner, 0o644)
    for path in sorted(job.inputs["common"].rglob("*.py")):
        _copy(path, library / "common" / path.relative_to(job.inputs["common"]), 0o644)
    for package, modules in MODULES.items():
        for name in modules:
            _copy(job.inputs[package] / name, library / package / name, 0o644)
    for name, folder in PROGRAMS.items():
        _copy(daemon / "bin" / name, job.out / folder / name, 0o755)
    _write_firewall(daemon / "parts/firewall", job.out / FIREWALL)
    if "python" in job.inputs:
        compile_all(job, library)


def _write_firewall(data: Path, path: Path) -> None:
    """The default rules as `nft -j` takes them: early boot loads them, before there is a daemon and a network."""
    path.write_bytes(rules.document(resolve(Source(default_text(data)), Path("default.toml"), data)))


def _copy(source: Path, target: Path, mode: int) -> None:
    if not source.is_file():
        raise BuildError(f"{source} is missing", reason="module-missing", hint="see MODULES in daemon/install.py")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(mode)


def compile_all(job: Job, library: Path) -> None:
    """Byte code with "unchecked hash" (PEP 552): same bytes everywhere, and the device never stats the source.

    The target's interpreter runs here through its own dynamic loader, since host and target share the machine type.
    """
    root, loader = job.inputs["python"], job.inputs["musl"] / "usr/lib/libc.so"
    program = next(iter(sorted((root / "usr/bin").glob("python3.[0-9]*[0-9]"))), root / "usr/bin/python3")
    libraries = [str(folder / "usr/lib") for folder in job.inputs.values() if (folder / "usr/lib").is_dir()]
    script = (
        "import compileall,py_compile,sys;"
        "mode=py_compile.PycInvalidationMode.UNCHECKED_HASH;"
        "ok=compileall.compile_dir(sys.argv[1],quiet=1,stripdir=sys.argv[2],prependdir='/',invalidation_mode=mode);"
        "sys.exit(not ok)"
    )
    argv: list[str | Path] = [
        loader,
        "--library-path",
        ":".join(libraries),
        program,
        "-I",
        "-B",
        "-c",
        script,
        library,
        job.out,
    ]
    environment = {"PYTHONHOME": os.fspath(root / "usr"), "PYTHONHASHSEED": "0"}
    run(argv, env=environment, timeout=300)
