"""How long `/bin/true` takes in a sandbox: the native launcher beside bubblewrap and crun showing the same files.

bubblewrap: new namespaces of every kind, /usr, /proc, a small /dev, a private /tmp; the launcher does that too, and
besides an account, empty capability sets, Landlock, a system call filter, limits and a reaper. Programs take turns, so
that a busy moment of the machine meets all of them. crun is left out where it does not run (it wants cgroup v2 alone).
Run by itself: `python -m tests.bench.sandbox_spawn`. Needs root.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import daemon
from buildsys.run import CLEAN_ENV, run
from daemon.part import Context
from daemon.sandbox.compile import compile_policy
from daemon.sandbox.profile import load_profile
from tests.bench.figures import Figure, table

GROUP = "sandboxed /bin/true, from start to end"
ROUNDS = 200
NOBODY = 65534
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
BWRAP = [
    "/usr/bin/bwrap", "--unshare-all", "--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr",
    "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/tmp",
    *(word for link, to in LINKS.items() for word in ("--symlink", to, f"/{link}")),
]  # fmt: skip


def figures(rounds: int = ROUNDS) -> list[Figure]:
    """Medians in milliseconds; the note has the tenth of the runs that the machine left alone most."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-bench-", dir="/var/tmp"))
    try:
        commands = _commands(folder)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, argv in commands.items():
                times[name].append(_once(argv))
    finally:
        shutil.rmtree(folder)
    found = []
    for name, values in times.items():
        quiet = statistics.quantiles(values, n=10)[0]
        peer = statistics.median(times["bubblewrap"]) if name.startswith("launcher, as") else None
        found.append(
            Figure(GROUP, f"{name}: median", statistics.median(values), "ms", peer, f"best tenth {quiet:.2f} ms")
        )
    return found


def _commands(folder: Path) -> dict[str, list[str]]:
    folder.chmod(0o755)
    source = Path(daemon.__file__).parent / "native" / "sandbox.c"
    launcher = folder / "sandbox"
    run(["gcc", "-std=c11", "-O2", "-static", "-o", launcher, source], timeout=120)
    profiles = Context(state=folder / "state", etc=folder / "etc")
    tool = load_profile(profiles, "tool").for_account(NOBODY, NOBODY)
    same = tool.model_validate({"read-only": ["/usr", *(f"?/{link}" for link in LINKS)], "scratch": {"/tmp": "64M"}})
    for name, policy in (("tool", tool), ("same", same)):
        (folder / name).write_bytes(compile_policy(policy, uid_locks=folder / "uids"))
    commands = {
        "no sandbox": ["/bin/true"],
        "launcher, as bubblewrap shows it": [str(launcher), str(folder / "same"), "--", "/bin/true"],
        "launcher, profile tool": [str(launcher), str(folder / "tool"), "--", "/bin/true"],
        "bubblewrap": [*BWRAP, "/bin/true"],
    }
    crun = shutil.which("crun", path=CLEAN_ENV["PATH"])
    if crun is not None:
        argv = [crun, "--cgroup-manager=disabled", "run", "--bundle", str(_bundle(folder)), "mixos-bench"]
        if run(argv, allow=range(256)).status == 0:
            commands["crun"] = argv
    return commands


def _bundle(folder: Path) -> Path:
    """An OCI bundle (runtime-spec 1.0) with the same namespaces and files, without a seccomp profile."""
    rootfs = folder / "bundle" / "rootfs"
    for name in ("usr", "proc", "dev", "tmp"):
        (rootfs / name).mkdir(parents=True)
    for link, target in LINKS.items():
        (rootfs / link).symlink_to(target)
    mounts: list[dict[str, Any]] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"]},
        {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "nodev"]},
        {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro", "nosuid", "nodev"]},
    ]
    namespaces = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
    process = {"args": ["/bin/true"], "cwd": "/", "env": ["PATH=/usr/bin"], "user": {"uid": NOBODY, "gid": NOBODY}}
    process["noNewPrivileges"] = True
    config = {"ociVersion": "1.0.0", "root": {"path": "rootfs"}, "process": process, "mounts": mounts}
    config["linux"] = {"namespaces": namespaces}
    (folder / "bundle" / "config.json").write_text(json.dumps(config))
    return folder / "bundle"


def _once(argv: list[str]) -> float:
    """Milliseconds."""
    null = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
    start = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, dict(CLEAN_ENV), file_actions=null)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    taken = (time.perf_counter() - start) * 1000
    if status != 0:
        raise RuntimeError(f"{argv[0]} ended with status {status}")
    return taken


if __name__ == "__main__":
    print(table(figures()))
