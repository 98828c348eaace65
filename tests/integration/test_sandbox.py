"""The launcher against the kernel: what is inside, what is not, and that nothing runs when a wall cannot be had.

Needs root, which is how the device uses it; the tests of a user's sandbox change to another account themselves.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import select
import shutil
import signal
import socket
import stat
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from buildsys.run import Completed, run
from common.errors import RefusedError
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.linux.cgroup import Tree
from daemon.linux.sandbox.compile import compile_policy
from daemon.linux.sandbox.policy import Policy
from daemon.linux.sandbox.seccomp import ABSENT, FORBIDDEN, KILLED, STRICT
from daemon.linux.sandbox.syscalls import numbers
from daemon.parts.sandbox import verbs as cli
from daemon.parts.sandbox.explain import explain
from daemon.parts.sandbox.part import Command, Named, Sandbox
from daemon.parts.sandbox.run import MAX_RUNNING, Ended, Output, Runner, SandboxError
from tests.native import SANITIZE, native
from tests.waiting import PATIENCE, ended, joined, processes, until

pytestmark = pytest.mark.integration
SYSTEM = ["/usr", "?/bin", "?/sbin", "?/lib", "?/lib64"]
NOBODY = 65534
TIMED_OUT, REFUSED, NOT_EXECUTABLE, NOT_FOUND = 124, 125, 126, 127


@dataclass(frozen=True)
class Ran:
    """A finished launch: exit code, output, error output, the report's lines by step."""

    code: int
    out: str
    err: str
    report: dict[str, Any]


@pytest.fixture(scope="session")
def programs() -> Iterator[Path]:
    """A folder that every account reaches, with the launcher: as shipped, and with address and undefined checks."""
    folder = Path(tempfile.mkdtemp(prefix="sandbox-", dir="/var/tmp"))
    folder.chmod(0o755)
    shutil.copy(native("sandbox"), folder / "sandbox")
    shutil.copy(native("sandbox", *SANITIZE), folder / "sandbox-checked")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def launcher(programs: Path) -> Path:
    return programs / "sandbox"


@pytest.fixture
def work(programs: Path) -> Iterator[Path]:
    """A folder that belongs to the account 61000, the first dynamic one."""
    folder = Path(tempfile.mkdtemp(dir=programs))
    os.chown(folder, 61000, 61000)
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def policy(**changes: Any) -> Policy:
    values = {"read-only": SYSTEM, "scratch": {"/tmp": "8M"}, **{k.replace("_", "-"): v for k, v in changes.items()}}
    return Policy.model_validate(values)


def write_policy(folder: Path, one: Policy) -> Path:
    path = folder / f"{random.randrange(1 << 40)}.policy"
    path.write_bytes(compile_policy(one, uid_locks=folder / "uids"))
    path.chmod(0o644)
    return path


def launch(
    launcher: Path,
    one: Policy,
    argv: Sequence[str],
    options: Sequence[str] = (),
    *,
    before: Sequence[str] = (),
    inherit_fd: int | None = None,
    **kw: Any,
) -> Ran:
    reader, writer = os.pipe()
    path = write_policy(launcher.parent, one)
    try:
        command = [*before, launcher, "--report", str(writer), *options, path, "--", *argv]
        passed = (writer,) if inherit_fd is None else (writer, inherit_fd)
        done: Completed = run(command, split=True, allow=range(256), pass_fds=passed, timeout=30, **kw)
    finally:
        os.close(writer)
        path.unlink()
    with os.fdopen(reader, "rb") as stream:
        lines = [json.loads(line) for line in stream.read().splitlines()]
    return Ran(done.status, done.stdout.decode(), done.stderr.decode(), {line["step"]: line for line in lines})


def shell(launcher: Path, script: str, one: Policy | None = None, **kw: Any) -> Ran:
    return launch(launcher, one or policy(), ["sh", "-c", script], **kw)


def python(launcher: Path, script: str, one: Policy | None = None, **kw: Any) -> Ran:
    return launch(launcher, one or policy(), ["python3", "-I", "-S", "-c", script], **kw)


# -- what is inside ----------------------------------------------------------------------------------------------------


def test_the_command_has_no_rights(launcher: Path) -> None:
    ran = shell(launcher, "id -u; id -G; grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status; hostname; umask")
    assert ran.code == 0
    lines = ran.out.split("\n")
    assert lines[:2] == ["61000", "61000"]
    fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert "localhost" in lines
    assert "0077" in lines


def test_the_report_says_what_was_read_back(launcher: Path) -> None:
    ready = shell(launcher, "exit 3").report["ready"]
    assert (ready["account"], ready["capabilities"], ready["seccomp"], ready["no-new-privs"]) == (61000, "0" * 16, 2, 1)
    assert (ready["network"], ready["proc"], ready["keyring"], ready["user-namespace"]) == (
        "none",
        "pids",
        "new",
        False,
    )
    assert ready["landlock"]["used"] == min(ready["landlock"]["abi"], 6)


def test_only_listed_paths_are_there(launcher: Path) -> None:
    ran = shell(launcher, "ls / /dev; ls /proc | grep -v '[0-9]'")
    words = set(ran.out.split())
    assert words & {"home", "root", "var", "run", "sys", "boot"} == set()
    assert {"null", "zero", "urandom", "pts", "usr", "tmp", "self"} <= words
    assert shell(launcher, "ls /etc").out == "group\npasswd\n"  # with its own account
    assert words & {"kcore", "sys", "sda", "vda", "kmsg", "mem", "meminfo"} == set()
    assert shell(launcher, "echo x > /usr/x || echo y > /new || mkdir /usr/d || echo z > /bin/sh").code != 0


def test_a_terminal_can_be_made_inside(launcher: Path) -> None:
    script = "import os; a, b = os.openpty(); os.write(b, b'x'); print(os.read(a, 1), os.ttyname(b))"
    assert python(launcher, script).out == "b'x' /dev/pts/0\n"


def test_everything_is_mounted_without_set_uid_and_devices(launcher: Path) -> None:
    ran = shell(launcher, "cat /proc/self/mounts", policy(read_write=[str(launcher.parent)]))
    for line in ran.out.splitlines():
        _, point, _, options, *_ = line.split()
        given = set(options.split(","))
        assert "nosuid" in given, line
        assert point.startswith("/dev/") or "nodev" in given, line
        if point in ("/tmp", str(launcher.parent)):
            assert {"rw", "noexec"} <= given, line


def test_executables_in_writable_paths_need_the_policys_word(launcher: Path) -> None:
    script = "printf '#!/bin/sh\\necho ran' > /tmp/x && chmod +x /tmp/x && /tmp/x"
    assert "ran" not in shell(launcher, script).out
    assert shell(launcher, script, policy(execute_writable=True)).out == "ran\n"


def test_the_environment_is_the_policys(launcher: Path) -> None:
    one = policy(environment={"A": "1"}, pass_environment=["KEPT", "ABSENT"])
    ran = launch(launcher, one, ["env"], env={"KEPT": "yes", "SECRET": "no", "LD_PRELOAD": "/x"})
    assert set(ran.out.split()) == {
        "A=1", "KEPT=yes", "LC_ALL=C.UTF-8", "PATH=/usr/bin:/usr/sbin:/bin:/sbin",
        "HOME=/", "USER=sandbox", "LOGNAME=sandbox",
    }  # fmt: skip


def test_a_path_from_outside_is_stronger_than_the_one_that_everybody_gets(launcher: Path) -> None:
    one = policy(pass_environment=["PATH", "HOME"], environment={"HOME": "/tmp"})
    for outside, inside in (("/opt/bin:/bin", "/opt/bin:/bin"), (None, "/usr/bin:/usr/sbin:/bin:/sbin")):
        before = ["env", "HOME=/root", f"PATH={outside}"] if outside else ["env", "-u", "PATH"]
        ran = launch(launcher, one, ["env"], before=before)
        assert set(ran.out.split()) == {
            "HOME=/tmp", "USER=sandbox", "LOGNAME=sandbox", "LC_ALL=C.UTF-8", f"PATH={inside}",
        }  # fmt: skip


def test_the_hosts_name_is_seen_when_the_policy_names_none(launcher: Path) -> None:
    assert shell(launcher, "hostname", policy(hostname="")).out.strip() == os.uname().nodename
    assert shell(launcher, "hostname", policy(hostname="inside")).out.strip() == "inside"


def test_a_private_tmp_of_a_bounded_size(launcher: Path) -> None:
    marker = Path("/tmp") / f"outside-{os.getpid()}"
    marker.write_text("x")
    try:
        ran = shell(
            launcher, f"cat {marker}; head -c 16M /dev/zero > /tmp/big; stat -c %s /tmp/big; ls -a /tmp | wc -l"
        )
    finally:
        marker.unlink()
    assert "x\n" not in ran.out
    assert int(ran.out.split()[0]) <= 8 << 20
    many = "i=0; while [ $i -lt 5000 ] && echo > /tmp/$i; do i=$((i + 1)); done; ls /tmp | wc -l"
    assert int(shell(launcher, many).out.split()[-1]) < 5000


def test_a_network_of_its_own(launcher: Path) -> None:
    sockets = policy(sockets=["inet", "netlink-route"], proc="full")
    ran = shell(launcher, "grep -c : /proc/net/dev; grep -o lo: /proc/net/dev", sockets)
    assert ran.out.split() == ["1", "lo:"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        script = f"import socket; socket.create_connection(('127.0.0.1', {port}), 2); print('reached')"
        assert "reached" not in python(launcher, script, sockets).out
        assert "reached" in python(launcher, script, sockets.model_copy(update={"network": "host"})).out


def test_abstract_sockets_of_the_host(launcher: Path) -> None:
    """With the host's network only Landlock stands before them, from ABI 6 on; the report says which it is."""
    name = f"sandbox-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"\0{name}")
        server.listen()
        script = f"import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}'); print('reached')"
        ran = python(launcher, script, policy(network="host"))
        assert ("reached" in ran.out) == (ran.report["ready"]["landlock"]["used"] < 6)
        assert "reached" not in python(launcher, script).out


def test_processes_of_others_do_not_exist(launcher: Path) -> None:
    ran = python(launcher, f"import os; os.kill({os.getpid()}, 0)")
    assert "ProcessLookupError" in ran.err
    ran = shell(launcher, "ls -d /proc/[0-9]*; cat /proc/1/environ /proc/1/maps; ls /proc/1/root /proc/1/fd")
    assert "/proc/1\n" not in ran.out


# -- system calls, really ----------------------------------------------------------------------------------------------

TRY = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
for word in sys.argv[1:]:
    number = int(word)
    child = os.fork()
    if child == 0:
        result = libc.syscall(number, 0, 0, 0, 0, 0, 0)
        os._exit(ctypes.get_errno() if result == -1 else 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.parametrize("level", ["standard", "strict"])
def test_every_refused_call_is_refused_by_the_kernel(launcher: Path, level: str) -> None:
    table = numbers(os.uname().machine)
    expected = dict.fromkeys(FORBIDDEN, 1) | dict.fromkeys(ABSENT, 38) | dict.fromkeys(KILLED, -31)
    expected |= dict.fromkeys(STRICT, 1) if level == "strict" else {}
    names = [name for name in expected if name in table]
    words = [str(table[name]) for name in names]
    ran = launch(launcher, policy(seccomp=level), ["python3", "-I", "-S", "-c", TRY, *words])
    answers = dict(zip(names, map(int, ran.out.split()), strict=True))
    assert answers == {name: expected[name] for name in names}


def test_arguments_are_compared_without_their_upper_half(launcher: Path) -> None:
    ioctl = numbers(os.uname().machine)["ioctl"]
    script = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for request in (0x5412, 0x5412 | 1 << 32, 0x5412 | 0xdeadbeef << 32, 0x541c, 0x541c | 1 << 63, 0x5413):
    libc.syscall(ctypes.c_long({ioctl}), ctypes.c_long(0), ctypes.c_ulong(request), b"x")
    print(ctypes.get_errno())
"""
    assert python(launcher, script).out.split() == ["1"] * 5 + ["25"]  # EPERM, and ENOTTY for what is allowed


def test_no_set_uid_file_can_be_left_behind(launcher: Path, work: Path) -> None:
    script = f"cd {work}; cp /bin/true a; chmod 4755 a; chmod u+s a; install -m 4755 /bin/true b; mkdir -m 2777 c"
    shell(launcher, script, policy(read_write=[str(work)]))
    assert (work / "a").exists()
    assert all(not path.stat().st_mode & (stat.S_ISUID | stat.S_ISGID) for path in work.iterdir())


# -- protected paths ---------------------------------------------------------------------------------------------------


def guarded(work: Path, **changes: Any) -> Policy:
    names = [".git/hooks/", ".git/config", ".envrc", ".vscode/tasks.json"]
    return policy(
        read_write=[str(work)], protect=[f"{work}/{name}" for name in names], hide=[f"{work}/key"], directory=str(work),
        **changes,
    )  # fmt: skip


def test_protected_paths_that_exist(launcher: Path, work: Path) -> None:
    shutil.copytree("/etc/skel", work / ".git")
    (work / ".git" / "config").write_text("safe")
    (work / "key").write_text("secret")
    for path in (work / ".git", work / ".git" / "config", work / "key"):
        os.chown(path, 61000, 61000)
        path.chmod(0o777)
    attempts = (
        "echo bad > .git/config", "rm .git/config", "mv .git/config x", "mv .git old", "rm -r .git",
        "ln .git/config hard", "chmod 600 .git/config", "mkdir .git/hooks/x", "rmdir .git/hooks",
        "echo bad > .envrc", "rm -f .envrc",
        "mv .vscode v", "ln -sf /tmp .envrc", "cat key", "cp -f /bin/true key", "truncate -s 0 .git/config",
    )  # fmt: skip
    script = "".join(f"{attempt} 2>/dev/null && echo DONE: '{attempt}'\n" for attempt in attempts)
    ran = shell(launcher, script, guarded(work))
    assert [line for line in ran.out.splitlines() if line not in ("DONE: rm -f .envrc", "DONE: cat key")] == []
    assert (work / ".git" / "config").read_text() == "safe"
    assert (work / "key").read_text() == "secret"
    assert ran.report["ready"]["placeholders"] == 3


def test_placeholders_are_gone_afterwards(launcher: Path, work: Path) -> None:
    (work / "key").write_text("secret")
    ran = shell(launcher, "ls -A; echo made > own", guarded(work))
    assert {".git", ".envrc", ".vscode", "key"} <= set(ran.out.split())
    assert sorted(path.name for path in work.iterdir()) == ["key", "own"]


def test_a_placeholder_that_a_crash_left_is_known_again(launcher: Path, work: Path) -> None:
    (work / ".envrc").touch(mode=0)
    (work / ".envrc").chmod(0)
    (work / ".git").mkdir()
    (work / ".git" / "hooks").mkdir()
    (work / ".git" / "hooks").chmod(0)
    assert shell(launcher, "echo x > .envrc || echo x > .git/hooks/pre-commit", guarded(work)).code != 0
    assert not (work / ".envrc").exists()
    assert not (work / ".git" / "hooks").exists()


def test_an_empty_file_of_a_person_is_no_placeholder(launcher: Path, work: Path) -> None:
    (work / ".envrc").touch(mode=0o644)
    shell(launcher, "true", guarded(work))
    assert (work / ".envrc").exists()


def test_sandboxes_that_share_a_folder_do_not_take_each_others_placeholders(launcher: Path, work: Path) -> None:
    path = write_policy(launcher.parent, guarded(work))
    long = "while [ ! -e go ]; do sleep 0.02; done; echo bad > .envrc; mv .git x; touch end"
    argv = [str(launcher), str(path), "--", "sh", "-c", long]
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    first = os.posix_spawn(launcher, argv, {}, file_actions=[null])
    until(lambda: (work / ".envrc").exists())
    assert shell(launcher, "true", guarded(work)).code == 0
    (work / "go").touch()
    assert ended(first) == 0
    path.unlink()
    assert sorted(item.name for item in work.iterdir()) == ["end", "go"]


@pytest.mark.parametrize("name", [".git", ".envrc"])
def test_a_symbolic_link_in_the_way_stops_everything(launcher: Path, work: Path, name: str) -> None:
    target = launcher.parent / "elsewhere"
    target.mkdir(exist_ok=True)
    (work / name).symlink_to(target)
    ran = shell(launcher, "echo ran", guarded(work))
    assert (ran.code, ran.out, ran.report) == (REFUSED, "", {})
    assert list(target.iterdir()) == []
    assert [path.name for path in work.iterdir()] == [name]


def test_a_file_where_a_folder_was_expected_is_what_is_protected(launcher: Path, work: Path) -> None:
    (work / ".git").write_text("gitdir: /elsewhere")
    (work / ".git").chmod(0o666)
    shell(launcher, "echo bad > .git; rm -f .git; mv .git x", guarded(work))
    assert (work / ".git").read_text() == "gitdir: /elsewhere"


def test_hidden_paths_in_a_read_only_tree(launcher: Path, programs: Path, work: Path) -> None:
    (work / "secret").write_text("s")
    (work / "folder").mkdir()
    (work / "folder" / "inner").write_text("s")
    one = policy(read_only=[*SYSTEM, str(work)], hide=[f"{work}/secret", f"{work}/folder/", f"{work}/absent"])
    ran = shell(launcher, f"cat {work}/secret; ls {work}/folder", one)
    assert (ran.code, ran.out) == (0, "")
    assert f"{work}/absent" in ran.report["ready"]["absent"]


def test_paths_that_a_caller_named_are_looked_up_with_the_callers_rights(launcher: Path, work: Path) -> None:
    closed = work / "closed"
    (closed / "open").mkdir(parents=True)
    closed.chmod(0o700)
    os.chown(closed, 0, 0)
    allowed = shell(launcher, "true", policy(read_only=[*SYSTEM, f"{closed}/open"]))
    assert allowed.code == 0
    for asked in ({"asked_read_only": [f"{closed}/open"]}, {"asked_read_write": [f"{closed}/open"]}):
        refused = shell(launcher, "echo ran", policy(**asked))
        assert (refused.code, refused.out) == (REFUSED, "")


def test_links_in_paths_lead_nowhere(launcher: Path, work: Path) -> None:
    (work / "link").symlink_to("/etc")
    for changes in ({"read_write": [f"{work}/link"]}, {"read_only": [f"{work}/link/ssh"]}):
        assert shell(launcher, "echo ran", policy(**changes)).code == REFUSED
    ran = shell(
        launcher, f"cat {work}/link/hostname || readlink {work}/link", policy(read_only=[*SYSTEM, f"{work}/link"])
    )
    assert ran.out == "/etc\n"  # the link as it is, to a place that is not there


# -- life and death ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"), [("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137), ("exit 255", 255)]
)
def test_exit_codes(launcher: Path, script: str, code: int) -> None:
    ran = shell(launcher, script)
    assert (ran.code, ran.report["end"]["code"]) == (code, code)


def test_what_cannot_be_executed(launcher: Path) -> None:
    assert launch(launcher, policy(), ["/nowhere"]).code == NOT_FOUND
    assert launch(launcher, policy(), ["/usr"]).code == NOT_EXECUTABLE


def test_the_wall_clock_ends_everything(launcher: Path) -> None:
    ran = shell(
        launcher, "trap '' TERM INT HUP; (trap '' TERM; sleep 100) & sleep 100", policy(limits={"wall": "200ms"})
    )
    assert (ran.code, ran.report["end"]["timeout"]) == (TIMED_OUT, True)


def test_nothing_is_left_when_the_command_ends(launcher: Path, work: Path) -> None:
    script = f"(setsid sh -c 'touch {work}/up; sleep 100') & until test -e {work}/up; do sleep 0.02; done; exit 0"
    assert shell(launcher, script, policy(read_write=[str(work)])).code == 0
    assert not list(processes(f"touch {work}/up"))


def spawn(launcher: Path, one: Policy, script: str) -> int:
    path = write_policy(launcher.parent, one)
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    return os.posix_spawn(launcher, [str(launcher), str(path), "--", "sh", "-c", script], {}, file_actions=[null])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_reach_the_command(launcher: Path, work: Path, number: signal.Signals) -> None:
    script = f"trap 'exit 42' {number.value}; touch up; while :; do sleep 0.05; done"
    pid = spawn(launcher, policy(read_write=[str(work)], directory=str(work)), script)
    until((work / "up").exists)
    os.kill(pid, number)
    assert ended(pid) == 42


@pytest.mark.parametrize(("terminal", "told"), [(False, ["main"]), (True, ["main", "worker"])])
def test_workers_get_only_what_a_terminal_sends(launcher: Path, work: Path, terminal: bool, told: list[str]) -> None:
    """A service is told to reload by SIGHUP; the processes that it started must not die of it."""
    script = """
sh -c 'trap "touch worker" HUP; trap "touch asked; exit" USR1; touch up; while :; do sleep 0.05; done' &
worker=$!
trap 'kill -USR1 $worker; wait $worker; touch main; exit 0' HUP
until test -e up; do sleep 0.02; done
touch ready
while :; do sleep 0.05; done"""
    one = policy(read_write=[str(work)], directory=str(work), terminal=terminal)
    pid = spawn(launcher, one, script)
    until((work / "ready").exists)
    os.kill(pid, signal.SIGHUP)
    assert ended(pid) == 0
    assert sorted(path.name for path in work.iterdir()) == sorted([*told, "asked", "ready", "up"])


@pytest.mark.parametrize("number", [signal.SIGALRM, signal.SIGRTMIN + 3])
def test_every_stop_signal_reaches_the_command(launcher: Path, work: Path, number: int) -> None:
    one = policy(read_write=[str(work)], directory=str(work))
    pid = spawn(launcher, one, "touch up; exec sleep 60")
    until((work / "up").exists)
    os.kill(pid, number)
    assert ended(pid) == 128 + number


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGABRT])
def test_when_the_keeper_ends_so_does_everything(launcher: Path, work: Path, number: signal.Signals) -> None:
    script = f": {work}; trap '' TERM INT HUP; while :; do date +%N > beat; sleep 0.02; done"
    pid = spawn(launcher, guarded(work), script)
    until((work / "beat").exists)
    os.kill(pid, number)
    ended(pid)
    until(lambda: not any(processes(f": {work};")))
    if number == signal.SIGABRT:
        assert [path.name for path in work.iterdir()] == ["beat"]


def test_each_sandbox_has_its_own_account(launcher: Path, work: Path) -> None:
    work.chmod(0o777)
    one = policy(read_write=[str(work)], directory=str(work))
    pids = [spawn(launcher, one, f"id -u > {name}; while [ ! -e go ]; do sleep 0.02; done") for name in "abc"]
    until(lambda: all((work / name).exists() and (work / name).read_text() for name in "abc"))
    (work / "go").touch()
    assert {ended(pid) for pid in pids} == {0}
    assert len({(work / name).read_text() for name in "abc"}) == 3


# -- descriptors, limits -----------------------------------------------------------------------------------------------


def test_no_descriptor_leaks_in(launcher: Path, work: Path) -> None:
    with open(work / "file", "w") as leaked:  # noqa: PTH123
        ran = shell(launcher, "ls /proc/self/fd", inherit_fd=leaked.fileno())
    assert ran.out.split() == ["0", "1", "2", "3"]  # 3 is the listing's own


def test_a_folder_as_descriptor_stops_everything(launcher: Path) -> None:
    folder = os.open("/", os.O_RDONLY)
    path = write_policy(launcher.parent, policy())
    try:
        actions = [(os.POSIX_SPAWN_DUP2, folder, 0)]
        pid = os.posix_spawn(launcher, [str(launcher), str(path), "--", "true"], {}, file_actions=actions)
        assert ended(pid) == REFUSED
    finally:
        os.close(folder)


def test_a_terminal_only_with_the_policys_word(launcher: Path) -> None:
    main, terminal = os.openpty()
    try:
        for allowed, code in ((False, REFUSED), (True, 0)):
            path = write_policy(launcher.parent, policy(terminal=allowed))
            actions = [(os.POSIX_SPAWN_DUP2, terminal, 0)]
            pid = os.posix_spawn(launcher, [str(launcher), str(path), "--", "true"], {}, file_actions=actions)
            assert ended(pid) == code
    finally:
        os.close(main)
        os.close(terminal)


@pytest.mark.parametrize("number", [3, 4, 63, 99, 100, 101, 102, 250])
def test_the_report_may_have_any_descriptor(launcher: Path, number: int) -> None:
    reader, writer = os.pipe()
    path = write_policy(launcher.parent, policy())
    cgroup = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line)
    argv = [str(launcher), "--cgroup", cgroup, "--report", str(number), str(path), "--", "ls", "/proc/self/fd"]
    actions = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, writer, 300)]
    actions += [(os.POSIX_SPAWN_DUP2, writer, 1), (os.POSIX_SPAWN_DUP2, 300, number)]
    pid = os.posix_spawn(launcher, argv, {}, file_actions=actions)
    os.close(writer)
    with os.fdopen(reader) as stream:
        lines = stream.read().splitlines()
    assert ended(pid) == 0
    assert [line for line in lines if not line.startswith("{")] == ["0", "1", "2", "3"]
    assert [json.loads(line)["step"] for line in lines if line.startswith("{")] == ["ready", "end"]


def test_descriptors_that_are_meant_to_pass(launcher: Path, work: Path) -> None:
    reader, writer = os.pipe()
    path = write_policy(launcher.parent, policy(pass_environment=["LISTEN_FDS", "LISTEN_PID"]))
    null = (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    script = 'echo "$LISTEN_FDS $LISTEN_PID $$" >&3; ls /proc/self/fd >&3'
    argv = [str(launcher), "--keep", "1", str(path), "--", "sh", "-c", script]
    actions = [null, (os.POSIX_SPAWN_DUP2, writer, 3)]
    pid = os.posix_spawn(launcher, argv, {"LISTEN_FDS": "1", "LISTEN_PID": "99"}, file_actions=actions)
    os.close(writer)
    with os.fdopen(reader) as stream:
        assert stream.read().split() == ["1", "2", "2", "0", "1", "2", "3", "4"]
    assert ended(pid) == 0


def test_limits_of_each_process(launcher: Path) -> None:
    one = policy(limits={"memory": "64M", "pids": 12, "file-size": "1M", "open-files": 32})
    ran = shell(
        launcher, "ulimit -c -d -f -n 2>&1; cat /proc/self/limits; head -c 2M /dev/zero > /tmp/x; wc -c < /tmp/x", one
    )
    assert (ran.report["ready"]["memory"], ran.report["ready"]["pids"]) == ("process", "process")
    assert "1048576" in ran.out.split()
    limits = {line[:25].strip(): line[25:].split()[0] for line in ran.out.splitlines() if line.startswith("Max ")}
    assert limits["Max core file size"] == "1"
    assert limits["Max data size"] == str(64 << 20)
    assert limits["Max open files"] == "32"
    hog = python(launcher, "x = bytearray(100 << 20); print('got it')", one)
    assert "MemoryError" in hog.err
    bomb = python(
        launcher,
        "import os, time\nfor _ in range(30):\n if os.fork() == 0: time.sleep(1); os._exit(0)",
        one,
    )
    assert "BlockingIOError" in bomb.err


@pytest.mark.parametrize("need", ["memory", "pids"])
def test_a_required_limit_that_is_not_there_stops_everything(launcher: Path, need: str) -> None:
    """Started in a group of its own, in which no controller limits anything."""
    ran = shell(launcher, "echo ran", policy(require=[need], limits={"memory": "64M", "pids": 12}))
    assert (ran.code, ran.out) == (REFUSED, "")


@pytest.mark.parametrize(
    ("folder", "limit", "by"),
    [("", "1048576", "cgroup"), ("..", "1048576", "cgroup"), ("", "max", "process"), ("", "4294967296", "process")],
)
def test_limits_of_the_group_that_it_is_started_in(
    launcher: Path, tmp_path: Path, folder: str, limit: str, by: str
) -> None:
    """As in a unit: the group is the caller's, the limit stands in it or above. Files stand for the controllers."""
    mount = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line)
    leaf = Path(mount) / f"unit-{os.getpid()}" / "main"
    leaf.mkdir(parents=True)
    path = write_policy(launcher.parent, policy(limits={"memory": "64M"}))
    script = f"""
echo $$ > {leaf}/cgroup.procs
mount -t tmpfs none /sys/fs/cgroup
mkdir -p /sys/fs/cgroup/{leaf.parent.name}/main/{folder}
echo {limit} > /sys/fs/cgroup/{leaf.parent.name}/main/{folder}/memory.max
exec {launcher} --dry --report 1 {path}"""
    try:
        done = run(["unshare", "--mount", "sh", "-c", script], split=True, timeout=30)
    finally:
        until(lambda: not (leaf / "cgroup.procs").read_text())
        leaf.rmdir()
        leaf.parent.rmdir()
        path.unlink()
    assert json.loads(done.stdout.splitlines()[-1])["memory"] == by


def test_the_command_starts_in_the_given_cgroup(launcher: Path) -> None:
    mount = next(
        line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.split()[2] == "cgroup2"
    )
    leaf = Path(mount) / f"sandbox-test-{os.getpid()}"
    leaf.mkdir()
    try:
        ran = shell(launcher, "cat /proc/self/cgroup; sleep 0.2", policy(), options=["--cgroup", str(leaf)])
        assert ran.code == 0
        assert "0::/" in ran.out.split()  # a root of its own, which says nothing about outside
        pid_file, path = leaf / "cgroup.procs", write_policy(launcher.parent, policy())
        pid = os.posix_spawn(
            launcher, [str(launcher), "--cgroup", str(leaf), str(path), "--", "sleep", "60"],
            {}, file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        )  # fmt: skip
        until(lambda: len(pid_file.read_text().split()) == 2)
        (leaf / "cgroup.kill").write_text("1")
        assert ended(pid) == 137
    finally:
        until(lambda: not (leaf / "cgroup.procs").read_text())
        leaf.rmdir()


# -- without root ------------------------------------------------------------------------------------------------------

AS_NOBODY = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


def test_an_ordinary_user_gets_a_weaker_sandbox_and_is_told(launcher: Path) -> None:
    ran = shell(launcher, "id -u; grep Cap /proc/self/status; cat /proc/self/uid_map; touch /usr/x", before=AS_NOBODY)
    assert ran.report["ready"]["user-namespace"] is True
    assert ran.out.split()[0] == "61000"
    assert f"61000 {NOBODY} 1" in " ".join(ran.out.split())
    assert {line.split()[1] for line in ran.out.splitlines() if line.startswith("Cap")} == {"0" * 16}


def test_an_ordinary_user_cannot_have_an_account_of_its_own(launcher: Path) -> None:
    ran = shell(launcher, "echo ran", policy(require=["account"]), before=AS_NOBODY)
    assert (ran.code, ran.out) == (REFUSED, "")


# -- the policy file ---------------------------------------------------------------------------------------------------


def test_a_policy_that_others_can_change_is_refused(launcher: Path) -> None:
    path = write_policy(launcher.parent, policy())
    for mode, owner in ((0o666, 0), (0o664, 0), (0o644, NOBODY)):
        os.chown(path, owner, owner)
        path.chmod(mode)
        assert run([launcher, "--check", path], allow=(REFUSED,)).status == REFUSED
    os.chown(path, 0, 0)
    assert run([launcher, "--check", path]).status == 0
    link = path.with_suffix(".link")
    link.symlink_to(path)
    assert run([launcher, "--check", link], allow=(REFUSED,)).status == REFUSED


@pytest.mark.parametrize(
    "arguments", [[], ["/x"], ["--report"], ["--keep", "-1", "/x", "--", "true"], ["--what", "/x"]]
)
def test_wrong_command_lines(launcher: Path, arguments: list[str]) -> None:
    assert run([launcher, *arguments], allow=(REFUSED,)).status == REFUSED


def test_garbage_fails_closed(programs: Path) -> None:
    """Cut short, changed, enlarged, in every field, under the address and undefined-behaviour checks."""
    whole = compile_policy(
        policy(read_write=["/project"], protect=["/project/a"], limits={"memory": "1M"}), uid_locks="/x"
    )
    chance = random.Random(7)
    samples = [whole[:length] for length in (0, 7, 15, 16, 17, 39, 40, 100, len(whole) - 8, len(whole) - 1)]
    samples += [whole + bytes(8), whole + whole[16:40], chance.randbytes(4096), b"MIXOSBX\0" + chance.randbytes(2000)]
    for _ in range(250):
        changed = bytearray(whole)
        for _ in range(chance.choice((1, 1, 2, 8))):
            at = chance.randrange(len(changed) if chance.random() < 0.5 else min(len(changed), 1500))
            changed[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        samples.append(bytes(changed))
    path = programs / "garbage.policy"
    path.touch(mode=0o600)
    statuses = []
    for sample in samples:
        path.write_bytes(sample)
        statuses.append(run([programs / "sandbox-checked", "--check", path], allow=range(256)).status)
    assert set(statuses) <= {0, REFUSED}  # 1 is what the checks end with
    assert statuses[:14] == [REFUSED] * 14
    path.write_bytes(whole)
    assert run([programs / "sandbox-checked", "--check", path]).status == 0


def test_the_whole_launcher_under_the_checks(programs: Path, work: Path) -> None:
    """The command does not run in this build: the checks' own files are not inside. Everything before it does."""
    ran = launch(programs / "sandbox-checked", guarded(work), ["true"], ["--dry"])
    assert (ran.code, ran.err) == (0, "")
    assert ran.report["ready"]["protected"] == 5
    assert list(work.iterdir()) == []


# -- the bridge --------------------------------------------------------------------------------------------------------


def proxy(path: Path, stop: threading.Event) -> threading.Thread:
    """The far end: answers each connection with what it sent, in capitals."""
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.fspath(path))
    path.chmod(0o666)
    server.listen(128)
    server.settimeout(0.2)

    def answer(channel: socket.socket) -> None:
        with channel:
            while data := channel.recv(65536):
                channel.sendall(data.upper())

    def serve() -> None:
        with server:
            while not stop.is_set():
                try:
                    channel, _ = server.accept()
                except TimeoutError:
                    continue
                channel.settimeout(20)
                threading.Thread(target=answer, args=(channel,), daemon=True).start()

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_the_bridge_joins_loopback_and_the_proxy(launcher: Path, programs: Path) -> None:
    path, stop = programs / "proxy.sock", threading.Event()
    thread = proxy(path, stop)
    script = """
import os, socket, threading
assert os.environ["https_proxy"] == "http://127.0.0.1:3128"
big = b"x" * 3_000_000
def one(data):
    with socket.create_connection(("127.0.0.1", 3128), 20) as channel:
        sender = threading.Thread(target=lambda: (channel.sendall(data), channel.shutdown(socket.SHUT_WR)))
        sender.start()
        got = bytearray()
        while part := channel.recv(65536):
            got += part
        sender.join()
        assert got == data.upper()
one(b"hello"); one(big)
threads = [threading.Thread(target=one, args=(b"%d" % n * 1000,)) for n in range(100)]
[thread.start() for thread in threads]; [thread.join() for thread in threads]
try:
    socket.create_connection(("127.0.0.1", 3129), 2)
except ConnectionRefusedError:
    print("done")
"""
    one = policy(network="proxy", proxy_socket=str(path), sockets=["unix", "inet"], limits={"wall": "25s"})
    try:
        ran = python(launcher, script, one)
    finally:
        stop.set()
        joined(thread)
        path.unlink()
    assert (ran.out, ran.code) == ("done\n", 0), ran.err


def test_without_its_proxy_nothing_runs(launcher: Path) -> None:
    ran = shell(launcher, "echo ran", policy(network="proxy", proxy_socket="/var/tmp/no-such-proxy"))
    assert (ran.code, ran.out) == (REFUSED, "")


# -- through the daemon's part -----------------------------------------------------------------------------------------

ADMIN = Caller(Role.ADMIN, 0, 0, 1, "root", "local")
USER = Caller(Role.OPERATOR, NOBODY, NOBODY, 1, "nobody", "local")


@pytest.fixture
def part(launcher: Path) -> Iterator[Sandbox]:
    folder = Path(tempfile.mkdtemp(dir=launcher.parent))
    places = {name: folder / name for name in ("run", "state", "etc", "lib")}
    context = Context(**places, shared=False)  # this host has no accounts of ours
    (folder / "run").mkdir()
    folder.chmod(0o755)
    yield Sandbox(context, Runner(context, None, launcher=launcher))
    shutil.rmtree(folder)


async def running(part: Sandbox, caller: Caller, params: dict[str, Any], stdin: int | None = None) -> Any:
    """The items of `sandbox.run`, with a descriptor as its input."""
    wanted = Command.model_validate({"input": None if stdin is None else 0, **params})
    if wanted.input is not None and stdin is not None:
        wanted.input.attach(os.dup(stdin))
    try:
        async for item in part.run(caller, wanted):
            yield item
    finally:
        if wanted.input is not None:
            wanted.input.close()


@contextlib.contextmanager
def handed(data: bytes) -> Iterator[int]:
    """A descriptor of a file with this content."""
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


def collect(
    part: Sandbox, caller: Caller, stdin: int | None = None, **params: Any
) -> tuple[bytes, bytes, dict[str, Any]]:
    async def gather() -> list[Any]:
        given = {key.replace("_", "-"): value for key, value in params.items()}
        return [item async for item in running(part, caller, given, stdin)]

    items = asyncio.run(gather())
    out, err = (b"".join(base64.b64decode(i["data"]) for i in items[:-1] if i["stream"] == n) for n in (1, 2))
    return out, err, items[-1]


def test_a_command_through_the_daemon(part: Sandbox) -> None:
    with handed(b"from outside") as given:
        out, err, end = collect(part, USER, given, command=["sh", "-c", "id -u; cat; echo oops >&2; exit 5"])
    assert (out, err, end["code"], end["timeout"]) == (f"{NOBODY}\nfrom outside".encode(), b"oops\n", 5, False)
    assert end["facts"]["missing"] == ["memory.max", "pids.max", "cpu.max"]
    assert list(part.runner.folder.iterdir()) == []
    assert part.status() == {"running": 0}


# case: D5
@pytest.mark.parametrize("profile", ["minimal", "tool", "build", "network", "service"])
def test_streams_may_be_opened_again_inside(part: Sandbox, profile: str) -> None:
    script = "cat /dev/stdin; echo out >/dev/stdout; echo err >/dev/stderr; echo more >>/dev/fd/2"
    for caller in (ADMIN,) if profile == "service" else (USER, ADMIN):
        with handed(b"given\n") as given:
            found = collect(part, caller, given, command=["sh", "-c", script], profile=profile)
        assert (*found[:2], found[2]["code"]) == (b"given\nout\n", b"err\nmore\n", 0)


def test_root_is_never_root_inside(part: Sandbox) -> None:
    out, _, _ = collect(part, ADMIN, command=["id", "-u"])
    assert int(out) >= 61000


def test_a_command_writes_only_where_its_caller_may(part: Sandbox, work: Path) -> None:
    os.chown(work, NOBODY, NOBODY)
    out, _, end = collect(
        part, USER, command=["sh", "-c", "pwd; echo x > new"], read_write=[str(work)], directory=str(work)
    )
    assert (out.decode().strip(), end["code"]) == (str(work), 0)
    assert (work / "new").stat().st_uid == NOBODY
    work.chmod(0o700)
    os.chown(work, 0, 0)
    _, _, end = collect(
        part, USER, command=["sh", "-c", f"echo x > {work}/new2"], read_write=[str(work)], directory="/tmp"
    )
    assert end["code"] != 0
    assert not (work / "new2").exists()


def test_a_user_cannot_have_placeholders_made_where_the_user_may_not(part: Sandbox, work: Path) -> None:
    """The launcher is root: it must not make a file such as /etc/nologin because somebody wants it protected."""
    os.chown(work, 0, 0)
    overlay = {"protect": [f"{work}/nologin", f"{work}/a/b/"]}
    with pytest.raises(SandboxError) as caught:
        collect(part, USER, command=["ls", "-A", str(work)], read_write=[str(work)], overlay=overlay)
    assert caught.value.reason == "sandbox-refused"
    assert list(work.iterdir()) == []
    os.chown(work, NOBODY, NOBODY)
    out, _, _ = collect(part, USER, command=["ls", "-A", str(work)], read_write=[str(work)], overlay=overlay)
    assert out.split() == [b"a", b"nologin"]
    assert list(work.iterdir()) == []


def test_a_refusal_takes_all_placeholders_back(launcher: Path, work: Path) -> None:
    """Also those of the profile, when it was the caller's wish that could not be met."""
    (work / "a").mkdir()
    (work / "b").mkdir()
    one = policy(read_write=[f"{work}/a"], asked_read_write=[f"{work}/b"], protect=[f"{work}/a/x/y", f"{work}/b/y"])
    assert shell(launcher, "true", one).code == REFUSED
    assert {path.name for path in work.rglob("*")} == {"a", "b"}


def test_an_empty_file_that_a_user_may_not_remove_stays(part: Sandbox, work: Path) -> None:
    (work / "flag").touch(mode=0)
    (work / "flag").chmod(0)
    os.chown(work, 0, 0)
    collect(part, USER, command=["true"], read_write=[str(work)], overlay={"protect": [f"{work}/flag"]})
    assert (work / "flag").exists()


def test_variables_pass_when_the_profile_names_them(part: Sandbox) -> None:
    out, _, _ = collect(part, USER, command=["env"], environment={"TERM": "dumb", "LD_PRELOAD": "/x", "PATH": "/y"})
    assert b"TERM=dumb" in out.split()
    assert b"/x" not in out
    assert b"/y" not in out


def test_a_sandbox_that_cannot_be_had_is_an_error_not_a_weaker_sandbox(part: Sandbox) -> None:
    with pytest.raises(SandboxError) as caught:
        collect(part, USER, command=["id"], profile="strict")
    assert caught.value.reason == "sandbox-refused"
    assert "memory.max" in caught.value.message
    with pytest.raises(RefusedError) as refused:
        collect(part, USER, command=["id"], network="host")
    assert refused.value.reason == "policy-loosens"


def test_much_output_and_its_reader_going_away(part: Sandbox) -> None:
    async def read_some() -> int:
        wanted = Command.model_validate({"command": ["sh", "-c", "yes; yes"]})
        items = part.run(USER, wanted)
        size = 0
        async for item in items:
            assert isinstance(item, dict)
            size += len(str(item["data"]))
            if size > 1 << 20:
                break
        await items.aclose()  # type: ignore[attr-defined]
        return len(part.runner.running)

    assert asyncio.run(read_some()) == 0
    out, _, end = collect(part, USER, command=["head", "-c", "5000000", "/dev/zero"])
    assert (len(out), end["code"]) == (5_000_000, 0)


def test_what_stays_open_does_not_hold_the_daemon(part: Sandbox) -> None:
    out, _, end = collect(part, USER, command=["sh", "-c", "exec >&- 2>&-; sleep 0.2; exit 3"])
    assert (out, end["code"]) == (b"", 3)
    _, _, end = collect(part, USER, command=["sh", "-c", "sleep 60 & exit 4"])
    assert end["code"] == 4


def test_only_so_many_at_once(part: Sandbox) -> None:
    """Also when all are asked for in the same moment, and none is counted twice."""

    async def one() -> str:
        try:
            return [item async for item in part.runner.run(policy(), ["sleep", "0.5"])][-1].__class__.__name__
        except RefusedError as error:
            return error.reason

    async def many() -> list[str]:
        return await asyncio.gather(*(one() for _ in range(MAX_RUNNING + 3)))

    found = asyncio.run(many())
    assert sorted(found) == ["Ended"] * MAX_RUNNING + ["sandbox-busy"] * 3
    assert part.status() == {"running": 0}


@pytest.mark.parametrize("word", ["\ud800", "a\0b", "x" * (128 << 10), "é" * (65 << 10)])
def test_words_that_no_kernel_takes(part: Sandbox, word: str) -> None:
    with pytest.raises(RefusedError) as caught:
        collect(part, USER, command=["echo", word])
    assert caught.value.reason == "sandbox-command"
    assert part.status() == {"running": 0}


def test_words_need_not_be_text(part: Sandbox) -> None:
    out, _, end = collect(part, USER, command=["echo", "-n", os.fsdecode(b"\xff\xe9")])
    assert (out, end["code"]) == (b"\xff\xe9", 0)


def test_the_launchers_reason_is_told_once(part: Sandbox) -> None:
    """As the error, not as output of a command that never was; what a command says is always its output."""

    async def items(command: list[str], **more: Any) -> list[Any]:
        found: list[Any] = []
        wanted = Command.model_validate({"command": command, **more})
        with contextlib.suppress(SandboxError):
            async for item in part.run(USER, wanted):
                found.append(item)
        return found

    assert asyncio.run(items(["id"], profile="strict")) == []
    said = asyncio.run(items(["/nowhere"]))
    assert [item.get("stream") for item in said] == [2, None]
    assert said[-1]["code"] == NOT_FOUND


@pytest.mark.parametrize("kind", ["file", "pipe"])
def test_input_of_any_size_and_kind(part: Sandbox, kind: str) -> None:
    """At the pace of whoever writes it; the command finds its end."""
    data = b"one line\n" * 200_000
    if kind == "file":
        with handed(data) as given:
            out, _, end = collect(part, USER, given, command=["sha256sum"])
    else:
        reader, writer = open_pipe()
        with reader, writer:
            thread = threading.Thread(target=lambda: (send_all(writer, data), writer.close()))
            thread.start()
            out, _, end = collect(part, USER, reader.fileno(), command=["sha256sum"])
            thread.join(20)
    assert (out.split()[0].decode(), end["code"]) == (hashlib.sha256(data).hexdigest(), 0)


def open_pipe() -> tuple[Any, Any]:
    reader, writer = os.pipe()
    return os.fdopen(reader, "rb", 0), os.fdopen(writer, "wb", 0)


def send_all(writer: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[writer.write(view) :]


def test_who_reads_no_input_is_not_kept_by_it(part: Sandbox) -> None:
    reader, writer = open_pipe()
    with reader, writer:  # never ends
        writer.write(bytes(60 << 10))
        assert collect(part, USER, reader.fileno(), command=["true"])[2]["code"] == 0
    with handed(bytes(1 << 20)) as given:
        assert collect(part, USER, given, command=["sh", "-c", "exec <&-; sleep 0.2"])[2]["code"] == 0


def test_an_input_that_breaks_off_is_no_end_of_the_input(part: Sandbox) -> None:
    async def act(given: int) -> str:
        items = running(part, USER, {"command": ["sh", "-c", "echo began; exec cat >/dev/null"]}, given)
        assert isinstance(await anext(items), dict)
        os.ftruncate(given, 1)
        with pytest.raises(RefusedError) as caught:
            await anext(items)
        return caught.value.reason

    with tempfile.TemporaryFile() as file:
        file.truncate(8 << 30)  # with holes
        assert asyncio.run(act(file.fileno())) == "transfer-changed"
    assert part.status() == {"running": 0}


def test_a_sandbox_gets_a_pipe_and_never_the_callers_descriptor(part: Sandbox) -> None:
    """Else it could move the caller's offset, or open the file behind it for writing."""
    with handed(b"mine") as given:
        script = "readlink /proc/self/fd/0; echo changed >/proc/self/fd/0; exec 2>/dev/null; cat"
        out, _, _ = collect(part, ADMIN, given, command=["sh", "-c", script])
        assert out.startswith(b"pipe:")
        assert os.pread(given, 10, 0) == b"mine"
        assert os.lseek(given, 0, os.SEEK_CUR) == 0


def test_a_sandbox_ends_with_the_daemon(part: Sandbox, launcher: Path, work: Path) -> None:
    """However the daemon ends: what stays silent would otherwise run on until its clock stops it."""
    beat = work / "beat"
    os.chown(work, 61000, 61000)
    work.chmod(0o777)
    child = os.fork()
    if child == 0:  # the daemon
        with contextlib.suppress(BaseException):
            script = f"cd {work}; trap '' TERM; while :; do date +%N > beat; sleep 0.02; done"
            one = policy(read_write=[str(work)], protect=[f"{work}/absent"])

            async def run_it() -> None:
                async for _ in part.runner.run(one, ["sh", "-c", script]):
                    pass

            asyncio.run(run_it())
        os._exit(1)
    until(lambda: beat.exists() and beat.read_text())
    os.kill(child, signal.SIGKILL)
    ended(child)
    until(lambda: not (work / "absent").exists())
    until(lambda: not any(processes(f"cd {work};")))


def test_an_earlier_daemons_groups_are_emptied_and_removed(launcher: Path, tmp_path: Path) -> None:
    mount = next(line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if " cgroup2 " in line)
    root = Path(mount) / f"sandboxes-test-{os.getpid()}"
    (root / "sandbox-1-1").mkdir(parents=True)
    pid = os.posix_spawn("/bin/sleep", ["sleep", "60"], {})
    (root / "sandbox-1-1" / "cgroup.procs").write_text(str(pid))
    runner = Runner(Context(run=tmp_path), Tree(root), launcher=launcher)
    try:
        runner.clear()
        assert ended(pid) == -signal.SIGKILL
        until(lambda: runner.clear() or not (root / "sandbox-1-1").exists())
    finally:
        root.rmdir()


def test_explain_measures(part: Sandbox) -> None:
    found = asyncio.run(part.explain(USER, Named(profile="tool")))
    assert isinstance(found, dict)
    verdicts = {row["what"]: row["enforced"] for row in found["rows"]}
    assert verdicts["files"] == verdicts["network"] == verdicts["system calls"] == verdicts["capabilities"] == "yes"
    assert verdicts["memory"] == verdicts["account"] == "partly"
    assert verdicts["cpu"] == "no"
    assert found["kernel"]["landlock"] == found["facts"]["landlock"]["abi"]


def test_profiles_and_show(part: Sandbox) -> None:
    listed = asyncio.run(part.profiles(USER, Named()))
    assert isinstance(listed, list)
    assert "strict" in {one["name"] for one in listed}
    shown = asyncio.run(part.show(USER, Named(profile="strict")))
    assert isinstance(shown, dict)
    assert shown["policy"]["seccomp"] == "strict"
    assert json.dumps(shown)


def test_every_shipped_profile_runs_here(part: Sandbox) -> None:
    """Those that demand a cgroup say so."""

    async def facts(name: str) -> str:
        from daemon.core.profiles import load_profile

        try:
            await explain(part.runner, load_profile(part.context, name).for_account(NOBODY, NOBODY))
        except (SandboxError, RefusedError) as error:
            return error.reason
        return "runs"

    names = ("minimal", "tool", "build", "network", "service", "package-script")
    found = {name: asyncio.run(facts(name)) for name in names}
    assert set(found.values()) == {"runs"}
    assert asyncio.run(facts("strict")) == "sandbox-refused"


def test_the_iterator_gives_typed_items(part: Sandbox) -> None:
    async def gather() -> list[Output | Ended]:
        return [item async for item in part.runner.run(policy(), ["echo", "hi"])]

    first, last = asyncio.run(gather())
    assert isinstance(first, Output)
    assert isinstance(last, Ended)
    assert (first.stream, first.data, last.code) == (1, b"hi\n", 0)


# -- the command line, with the daemon's part at the other end ---------------------------------------------------------


@pytest.fixture
def mixctl(part: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs `mixctl sandbox WORDS`; requests go through JSON, as they do over the socket."""
    methods = {method.name: method for method in part.methods()}

    def follow(name: str, params: dict[str, Any], descriptors: Sequence[int]) -> Iterator[Any]:
        assert name == "sandbox.run"

        async def gather() -> list[Any]:
            items = running(part, USER, json.loads(json.dumps(params)), descriptors[0] if descriptors else None)
            return [json.loads(json.dumps(item)) async for item in items]

        yield from asyncio.run(gather())

    def ask(name: str, params: dict[str, Any] | None = None) -> Any:
        method = methods[name]
        return json.loads(json.dumps(asyncio.run(method.handler(USER, method.params.model_validate(params or {})))))

    monkeypatch.setattr(cli, "follow", lambda name, params, descriptors=(): follow(name, params, descriptors))
    monkeypatch.setattr(cli, "ask", ask)
    return lambda *words, **more: CliRunner().invoke(cli.sandbox, list(words), **more)


def test_run_on_the_command_line(mixctl: Any, work: Path) -> None:
    os.chown(work, NOBODY, NOBODY)
    done = mixctl("run", "--rw", str(work), "--", "sh", "-c", "pwd; echo warning >&2; exit 9")
    assert (done.exit_code, done.stdout, done.stderr) == (9, f"{work}\n", "warning\n")
    lines = mixctl("run", "--json", "--", "true").stdout
    assert '"code": 0' in lines
    assert mixctl("run", "--net", "host", "--", "true").exception.reason == "policy-loosens"
    assert mixctl("run", "--profile", "tol", "--", "true").exception.reason == "profile-missing"


# case: D15
def test_names_that_work_outside_work_inside(mixctl: Any, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.chown(work, NOBODY, NOBODY)
    (work / "pj" / "deep").mkdir(parents=True)
    (work / "link").symlink_to("pj")
    (work / "file").write_text("x")
    os.chown(work / "file", NOBODY, NOBODY)
    monkeypatch.chdir(work)
    folder = f"{work}/pj\n"
    for words, said in (
        (("--rw", "link", "-C", "link", "--", "pwd"), folder),
        (("--rw", "pj", "-C", "pj/", "--", "pwd"), folder),
        (("--rw", "pj/", "--ro", "link", "--", "pwd"), folder),
        (("--rw", "pj", "-C", "link/deep/..", "--", "pwd"), folder),
        (("--ro", "link", "-C", "link/deep", "--", "pwd"), f"{work}/pj/deep\n"),
        (("--rw", "file", "--", "pwd"), "/\n"),
        (("--rw", "file", "--rw", "pj", "--", "pwd"), folder),
        (("--rw", "pj", "-C", "/tmp/", "--", "pwd"), "/tmp\n"),
        (("--rw", "/tmp", "--", "sh", "-c", f"test -e {work}; pwd"), "/tmp\n"),
    ):
        done = mixctl("run", *words)
        assert (done.exit_code, done.stdout) == (0, said), (words, done.output, done.exception)


# case: D17
def test_the_name_of_a_sandbox_resolves(launcher: Path) -> None:
    name = "import socket; print(socket.gethostbyname(socket.gethostname()))"
    one = policy(read_only=[*SYSTEM, "?/etc/hosts", "?/etc/nsswitch.conf"], sockets=["unix", "inet", "inet6"])
    assert launch(launcher, one, ["python3", "-I", "-c", name]).out == "127.0.0.1\n"


WHO = """
import grp, os, pwd
me = pwd.getpwuid(os.getuid())
assert me.pw_name == os.environ["USER"] == os.environ["LOGNAME"], me
assert pwd.getpwnam(me.pw_name) == me and me.pw_uid == os.getuid() and me.pw_gid == os.getgid()
assert grp.getgrgid(os.getgid()).gr_name == me.pw_name
print(me.pw_name, me.pw_dir, len(pwd.getpwall()) > 1, len(grp.getgrall()) > 1)
for path in ("/etc/passwd", "/etc/group"):
    for change in (lambda: open(path, "a"), lambda: os.unlink(path), lambda: os.rename("/tmp", path)):
        try:
            change()
        except OSError:
            continue
        print("changed")
"""


@pytest.mark.parametrize(("home", "told"), [("/", "/"), ("/tmp", "/tmp"), ("/a:b", "/"), ("/\nroot::0:0:", "/")])
@pytest.mark.parametrize("shown", [[], ["?/etc/passwd", "?/etc/group"], ["/etc"]])
def test_a_dynamic_account_has_a_name_inside(launcher: Path, shown: list[str], home: str, told: str) -> None:
    before = Path("/etc/passwd").read_bytes()
    ran = python(launcher, WHO, policy(read_only=[*SYSTEM, *shown], environment={"HOME": home}))
    assert (ran.code, ran.out) == (0, f"sandbox {told} {bool(shown)} {bool(shown)}\n"), ran.err
    assert Path("/etc/passwd").read_bytes() == before


@pytest.mark.parametrize("hidden", ["/etc/passwd", "/etc/"])
def test_accounts_that_the_policy_hides_stay_hidden(launcher: Path, hidden: str) -> None:
    one = policy(read_only=[*SYSTEM, "/etc"], hide=[hidden])
    assert shell(launcher, "cat /etc/passwd; ls -A / | grep '^[.]'; id -u", one).out == "61000\n"


def test_a_file_of_accounts_that_is_none_or_large_stays_as_it_is(launcher: Path, work: Path) -> None:
    """The host's file is exchanged in a mount namespace of the launcher's own."""
    large = work / "large"
    large.write_text("x:x:7:7::/:/bin/sh\n" * 10_000)
    before = ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/passwd && exec "$@"']
    one = policy(read_only=[*SYSTEM, "/etc/passwd"])
    ask = "import os; print(os.stat('/etc/passwd').st_size)"
    assert python(launcher, ask, one, before=[*before, str(large)]).out == f"{large.stat().st_size}\n"
    assert python(launcher, ask, one, before=[*before, "/dev/null"]).out == "0\n"


def test_json_is_one_object_a_line(mixctl: Any) -> None:
    lines = mixctl("run", "--json", "--", "sh", "-c", "echo a; sleep 0.1; echo b >&2").stdout.splitlines()
    assert [json.loads(line).get("stream") for line in lines] == [1, 2, None]


def test_output_cannot_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    main, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream, os.fdopen(main, "rb", buffering=0) as screen:
        monkeypatch.setattr(sys, "stdout", stream)
        write = cli._writer(1)
        for piece in (b"a\x1b]52;c;eA==\x07", b"\xc3", b"\xa9\x9b1m\r\n50%\r99%\n", b"."):
            write(piece)
        shown = b""
        while not shown.endswith(b"."):
            assert select.select([screen], [], [], PATIENCE)[0]
            shown += screen.read(1000)
    assert shown.replace(b"\r\n", b"\n") == "a\\x1b]52;c;eA==\\x07é\ufffd1m\n50%\n99%\n.".encode()


def test_standard_input_is_handed_over(mixctl: Any) -> None:
    """Files, pipes, and files of /proc, which have no size."""
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)
    version = os.open("/proc/version", os.O_RDONLY)
    kept = os.dup(0)
    try:
        for number, expected in ((reader, "from a pipe"), (version, Path("/proc/version").read_text())):
            os.dup2(number, 0)
            assert mixctl("run", "--", "cat").stdout == expected
    finally:
        os.dup2(kept, 0)
        for number in (kept, reader, version):
            os.close(number)


def test_explain_profiles_and_show_on_the_command_line(mixctl: Any) -> None:
    for words in (["explain"], ["profiles"], ["show", "tool"]):
        text, as_json = mixctl(*words), mixctl(*words, "--json")
        assert (text.exit_code, as_json.exit_code) == (0, 0), text.exception
        assert json.loads(as_json.stdout)
    assert "seccomp = standard" in mixctl("show", "tool").stdout.splitlines()
