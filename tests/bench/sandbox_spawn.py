"""How long `/bin/true` takes in a sandbox: the native launcher beside bubblewrap and crun with the same isolation.

The same for all: new PID, network, IPC, UTS, mount and cgroup namespaces, the same system call filter, no capability,
no_new_privs, /usr read-only, own /proc, small /dev, private /tmp, no cgroup of its own. Each sandbox is asked for that
before it is measured. The launcher does more: Landlock, a locked account of its own, limits, a process that reaps and
cleans up; bubblewrap stays root and keeps the bounding set. Programs take turns, so that a busy moment of the machine
meets all of them.
"""

from __future__ import annotations

import base64
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from buildsys.run import CLEAN_ENV, find_tool, run
from common.errors import HostError
from daemon.core.part import Context
from daemon.core.profiles import load_profile
from daemon.linux.sandbox import seccomp
from daemon.linux.sandbox.compile import compile_policy
from daemon.linux.sandbox.policy import Policy
from tests.bench import mixosd
from tests.bench.figures import Figure, table
from tests.hostpackages import ROOT

ROUNDS = 200
GROUP = f"sandboxed /bin/true, from start to end, median of {ROUNDS}"
NOBODY = 65534
FREE, OURS, PEER = "no sandbox", "launcher", "bubblewrap"
LINKS = {"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64"}
NAMESPACES = ("pid", "net", "ipc", "uts", "mnt", "cgroup")
LOOK = f"cd /proc/self/ns && readlink {' '.join(NAMESPACES)}; grep -E '^(Seccomp|NoNewPrivs|CapEff):' ../status"
WALLS = ("CapEff:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2")
BWRAP = (
    "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup", "--cap-drop", "ALL",
    "--die-with-parent", "--new-session", "--ro-bind", "/usr", "/usr", "--proc", "/proc", "--dev", "/dev",
    "--tmpfs", "/tmp", *(word for link, to in LINKS.items() for word in ("--symlink", to, f"/{link}")),
)  # fmt: skip
FILTER, FILTER_FD = "filter", 3


def figures() -> list[Figure]:
    """Milliseconds; the note has the tenth of the runs that the machine left alone most. Raises HostError."""
    if os.geteuid() != 0:
        raise HostError("sandboxes with accounts of their own need root", reason="bench-root", hint="run it as root")
    with tempfile.TemporaryDirectory(prefix="mixos-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        (folder / "commands.json").write_text(json.dumps(_commands(folder)))
        argv = [sys.executable, "-m", "tests.bench.sandbox_spawn", name]
        times: dict[str, list[float]] = json.loads(run([*_one_hierarchy(), *argv], cwd=ROOT).stdout)
    peer = round(statistics.median(times[PEER]), 2)
    return [
        Figure(
            GROUP,
            what,
            round(statistics.median(values), 2),
            "ms",
            peer if what == OURS else None,
            f"best tenth {statistics.quantiles(values, n=10)[0]:.2f} ms",
        )
        for what, values in times.items()
    ]


def _commands(folder: Path) -> dict[str, list[str]]:
    """The sandboxes as argv; what runs in them is appended."""
    folder.chmod(0o755)
    profiles = Context(state=folder / "state", etc=folder / "etc")
    same = Policy.model_validate({"read-only": ["/usr", *(f"?/{link}" for link in LINKS)], "scratch": {"/tmp": "64M"}})
    tool = load_profile(profiles, "tool").for_account(NOBODY, NOBODY)
    for name, policy in (("same", same), ("tool", tool)):
        (folder / name).write_bytes(compile_policy(policy, uid_locks=folder / "uids"))
    rules = seccomp.program(platform.machine(), same.seccomp, frozenset(same.sockets))
    (folder / FILTER).write_bytes(rules)
    launcher, bwrap, crun = mixosd.program("sandbox"), find_tool("bwrap"), find_tool("crun")
    return {
        FREE: [],
        OURS: [str(launcher), str(folder / "same"), "--"],
        "launcher, profile tool": [str(launcher), str(folder / "tool"), "--"],
        PEER: [str(bwrap), *BWRAP, "--seccomp", str(FILTER_FD)],
        "crun": [str(crun), "--cgroup-manager=disabled", "run", "--bundle", str(_bundle(folder, rules)), "mixos-bench"],
    }


def _bundle(folder: Path, rules: bytes) -> Path:
    """An OCI bundle (runtime-spec 1.0; crun(1) for the annotation); the command is put into it by `_argv`."""
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
    kinds = ("pid", "network", "ipc", "uts", "mount", "cgroup")
    process: dict[str, Any] = {"cwd": "/", "env": ["PATH=/usr/bin"], "user": {"uid": NOBODY, "gid": NOBODY}}
    process |= {"noNewPrivileges": True, "capabilities": {}}
    config = {"ociVersion": "1.0.0", "root": {"path": "rootfs", "readonly": True}, "process": process, "mounts": mounts}
    config["linux"] = {"namespaces": [{"type": kind} for kind in kinds]}
    config["annotations"] = {"run.oci.seccomp_bpf_data": base64.b64encode(rules).decode()}
    (folder / "bundle" / "config.json").write_text(json.dumps(config))
    return folder / "bundle"


def _one_hierarchy() -> list[str]:
    """What to put before a command so that it finds cgroup v2 where the device has it: crun refuses mixed hosts."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    places = [words[1] for line in lines if (words := line.split())[2] == "cgroup2"]
    if not places or "/sys/fs/cgroup" in places:
        return []
    return ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /sys/fs/cgroup && exec "$@"', places[0]]


# -- in a process of its own -----------------------------------------------------------------------------------------


def measure(folder: Path) -> dict[str, list[float]]:
    """Milliseconds of each run, by sandbox. Raises HostError when one lacks a wall."""
    commands: dict[str, list[str]] = json.loads((folder / "commands.json").read_text())
    for name in commands:
        if name != FREE:
            _check(folder, name, commands[name])
    argvs = {name: _argv(folder, argv, ["/bin/true"]) for name, argv in commands.items()}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(ROUNDS):
        for name, argv in argvs.items():
            times[name].append(_once(folder, argv))
    return times


def _argv(folder: Path, sandbox: list[str], command: list[str]) -> list[str]:
    if "--bundle" not in sandbox:
        return [*sandbox, *command]
    path = folder / "bundle" / "config.json"
    config = json.loads(path.read_text())
    config["process"]["args"] = command
    path.write_text(json.dumps(config))
    return sandbox


def _check(folder: Path, name: str, sandbox: list[str]) -> None:
    """Ask a sandbox from inside for the walls that all of them are to have."""
    seen = folder / "seen"
    _once(folder, _argv(folder, sandbox, ["/bin/sh", "-c", LOOK]), output=seen)
    found = seen.read_text().splitlines()
    outside = [os.readlink(f"/proc/self/ns/{kind}") for kind in NAMESPACES]
    missing = [kind for kind, own in zip(NAMESPACES, outside, strict=True) if own in found or len(found) < len(outside)]
    missing += [wall for wall in WALLS if wall not in found]
    if missing:
        raise HostError(f"{name} lacks {', '.join(missing)}: {found}", reason="bench-isolation")


def _once(folder: Path, argv: list[str], output: Path = Path(os.devnull)) -> float:
    """Milliseconds."""
    actions = [
        (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600),
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, FILTER_FD, str(folder / FILTER), os.O_RDONLY, 0),
    ]
    start = time.perf_counter()
    pid = os.posix_spawn(argv[0], argv, dict(CLEAN_ENV), file_actions=actions)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    taken = (time.perf_counter() - start) * 1000
    if status != 0:
        raise HostError(f"{argv[0]} ended with status {status}", reason="bench-sandbox")
    return taken


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))) if sys.argv[1:] else table(figures()))
