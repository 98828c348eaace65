"""A place to log in to: a real sshd with the image's configuration and accounts, in namespaces of its own.

Nothing of the host changes. A mount namespace lays the image's /etc, the login program and its Python code over the
host's tree, and tmpfs over /home and /run; a network namespace has nothing but a loopback, so port 22 is free there and
nobody else can reach it. The daemon behind it is the real one, in this process.
"""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import shutil
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click

from buildsys.run import Completed, run
from common.settings.model import Settings, SshKey
from common.settings.render import render
from daemon.core.method import Caller
from daemon.core.part import Context
from daemon.core.parts import Source
from daemon.doors import server
from daemon.mixosd import Daemon
from daemon.parts.metrics.part import Metrics
from tests.waiting import ended, joined

ROOT = Path(__file__).resolve().parents[2]
PASSWD = ROOT / "rootfs/skeleton/etc/passwd"
# Words that the host's own, perhaps older, sshd does not know. The image's release knows them (see the boot tests).
NEWER = (r"^PerSourcePenalties .*\n", r"mlkem768x25519-sha256,", r"sntrup761x25519-sha512,")
_SECONDS = 60.0

_SETUP = """
set -e
ip link set lo up
mount -t tmpfs tmpfs /mnt
cp -a {tree} /mnt/upper
mkdir /mnt/layer /mnt/layer/etc /mnt/layer/usr
for name in etc usr; do
    mount -t overlay overlay -o lowerdir=/$name,upperdir=/mnt/upper/$name,workdir=/mnt/layer/$name /$name
done
mount -t tmpfs -o mode=0755 tmpfs /home
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/sshd /run/mixos
mount --bind {run} /run/mixos
if [ {prefix} != /usr ]; then
    mkdir /mnt/python
    mount --bind {prefix} /mnt/python
fi
while IFS=: read -r name _ uid gid _ home _; do
    case $home in /home/*) mkdir -m 0700 "$home" && chown "$uid:$gid" "$home" ;; esac
done </etc/passwd
umask 027
exec /usr/sbin/sshd -D -e
"""


class Session:
    """A program on a pseudo-terminal."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.seen = ""
        # Ctrl-C may come before the program does: then it ends our copy, and is no KeyboardInterrupt in it, which would
        # tell the others of this test run that we were interrupted.
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            try:
                os.environ["TERM"] = "vt100"
                os.execvp(argv[0], list(argv))
            finally:
                os._exit(127)  # our copy must not go on with the tests
        signal.signal(signal.SIGINT, before)
        termios.tcsetwinsize(self.terminal, (12, 80))

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Wait for `pattern` in what was shown since the last call; what is shown before its end counts as seen."""
        deadline = time.monotonic() + _SECONDS
        while (found := re.search(pattern, self.seen)) is None:
            if not self._read(deadline):
                raise AssertionError(f"{pattern!r} did not appear; instead: {self.seen!r}")
        self.seen = self.seen[found.end() :]
        return found

    def end(self) -> int:
        """Wait for the program's end; its exit code. What it still shows is in `seen`."""
        deadline = time.monotonic() + _SECONDS
        while self._read(deadline):
            pass
        if time.monotonic() > deadline:
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.terminal)
        return ended(self.pid)

    def _read(self, deadline: float) -> bool:
        """Read some; False at the end or when the time is up."""
        if not select.select([self.terminal], [], [], max(0.0, deadline - time.monotonic()))[0]:
            return False
        try:
            data = os.read(self.terminal, 4096)
        except OSError:  # EIO: the other side was closed
            return False
        self.seen += re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", data.decode("utf-8", "replace"))
        return bool(data)


class LoginDevice:
    """See the module. callers: who asked the daemon, as it saw them."""

    def __init__(self, folder: Path, key: Path, pid: int, callers: list[Caller]) -> None:
        self.folder = folder
        self.key = key
        self.pid = pid
        self.callers = callers

    def argv(self, user: str, *words: str, options: Sequence[str] = (), key: Path | None = None) -> list[str]:
        """The command line of ssh to an account, run in the network namespace."""
        return [*self._inside(), "ssh", *self._options(options, key), f"{user}@127.0.0.1", *words]

    def ssh(
        self, user: str, *words: str, options: Sequence[str] = (), key: Path | None = None, stdin: bytes = b""
    ) -> Completed:
        """Run ssh to its end, whatever the status. Ordinary calls share a connection, which ends with the server."""
        if not options and key is None:
            options = ["ControlMaster=auto", f"ControlPath={self.folder}/%r.mux", "ControlPersist=60"]
        argv = self.argv(user, *words, options=options, key=key)
        return run(argv, stdin=stdin, split=True, allow=range(256), timeout=_SECONDS)

    def sftp(self, user: str, batch: str) -> Completed:
        """Run sftp with a batch of commands."""
        argv = [*self._inside(), "sftp", "-b", "-", *self._options((), None), f"{user}@127.0.0.1"]
        return run(argv, stdin=batch.encode(), split=True, allow=range(256), timeout=_SECONDS)

    def inside(self, *words: str) -> Completed:
        """Run a program as root where sshd runs."""
        return run(["nsenter", f"--target={self.pid}", "--mount", "--net", *words], split=True, allow=range(256))

    def _inside(self) -> list[str]:
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net"]

    def _options(self, options: Sequence[str], key: Path | None) -> list[str]:
        known = f"UserKnownHostsFile={self.folder}/known"
        given = ["BatchMode=yes", "StrictHostKeyChecking=accept-new", known, "IdentitiesOnly=yes", "LogLevel=ERROR"]
        words = [word for option in [*options, *given] for word in ("-o", option)]
        return ["-F", "none", "-i", str(key or self.key), *words]


def make_key(folder: Path, name: str) -> Path:
    """A key pair; the path of the private one."""
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name])
    return folder / name


def public(key: Path) -> str:
    return key.with_suffix(".pub").read_text().strip()


@contextmanager
def login_device(folder: Path, keys: Sequence[SshKey], key: Path) -> Iterator[LoginDevice]:
    """Start daemon and sshd; `keys` may log in, `key` is the private one that is used without another being named."""
    tree = folder / "tree"
    make_tree(tree, Settings(root_login=True, keys=tuple(keys)))
    (folder / "run").mkdir(mode=0o755)
    script = _SETUP.format(tree=tree, run=folder / "run", prefix=sys.base_prefix)
    log = os.open(folder / "sshd.log", os.O_WRONLY | os.O_CREAT, 0o600)
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
    ]
    own = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--propagation", "private"]
    argv = ["unshare", *own, "sh", "-c", script]
    with serving(folder / "run") as callers:
        pid = os.posix_spawnp("unshare", argv, {"PATH": os.environ["PATH"]}, file_actions=actions, setsid=True)
        try:
            wait_for(lambda: b"listening" in (folder / "sshd.log").read_bytes(), folder / "sshd.log")
            yield LoginDevice(folder, key, pid, callers)
        finally:
            os.kill(pid, signal.SIGKILL)  # and with it all that runs in the process namespace
            ended(pid)
            os.close(log)


def make_tree(tree: Path, settings: Settings) -> None:
    """What is laid over the host's /etc and /usr."""
    etc, usr = tree / "etc", tree / "usr"
    shutil.copytree(ROOT / "rootfs/skeleton/etc", etc)
    etc.joinpath("shadow").chmod(0o600)
    for path, file in render(settings).items():
        target = tree / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.data)
        target.chmod(file.mode)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", etc / "ssh/ssh_host_ed25519_key"])
    config = etc / "ssh/sshd_config"
    text = config.read_text()
    for pattern in NEWER:
        text = re.sub(pattern, "", text, flags=re.MULTILINE)
    config.write_text(text)
    library = usr / "lib/mixos/python"
    for package in ("common", "daemon", "packages/mix"):
        ignored = shutil.ignore_patterns("__pycache__", "recipes")
        shutil.copytree(ROOT / package, library / package, ignore=ignored)
    (library / "packages/__init__.py").touch()
    site = usr / f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    shutil.copytree(Path(click.__file__).parent, site / "click")
    run([sys.executable, "-m", "compileall", "-q", library, site])  # as in the image
    for name, place in (("mixctl", "bin"), ("mixos-console", "libexec")):
        (usr / place).mkdir(exist_ok=True)
        shutil.copy(ROOT / "daemon/bin" / name, usr / place / name)
        (usr / place / name).chmod(0o755)
    if sys.base_prefix != "/usr":
        (usr / "bin/python3").symlink_to(f"/mnt/python/bin/python{sys.version_info[0]}.{sys.version_info[1]}")
    if not Path("/usr/sbin/sshd").exists():
        unpack_sshd(tree)


def unpack_sshd(tree: Path) -> None:
    """The distribution's sshd, unpacked and not installed: nobody's machine begins to listen for the sake of a test."""
    packages = tree.parent / "packages"
    packages.mkdir()
    run(["apt-get", "download", "openssh-server", "libwrap0"], cwd=packages, inherit=["*_proxy"], timeout=300)
    for path in sorted(packages.glob("*.deb")):
        run(["dpkg-deb", "--extract", path, packages / "unpacked"])
    for name in ("usr/sbin", "usr/lib", "lib"):
        if (packages / "unpacked" / name).is_dir():
            target = tree / ("usr/lib" if name == "lib" else name)
            shutil.copytree(packages / "unpacked" / name, target, symlinks=True, dirs_exist_ok=True)


@contextmanager
def serving(folder: Path) -> Iterator[list[Caller]]:
    """The daemon with a socket in `folder`, in a thread; gives the list that callers are added to."""
    callers: list[Caller] = []
    holder: dict[str, object] = {}
    context = Context(run=folder, state=folder / "state", etc=folder, lib=folder, log=folder / "log")
    daemon = Daemon(context, [Source("metrics", lambda: Metrics(context))], bus="/nonexistent/bus")
    real = server.identify

    def identify(*arguments: object) -> Caller | None:
        found = real(*arguments)  # type: ignore[arg-type]
        callers.extend([found] if found else [])
        return found

    async def main() -> None:
        holder.update(loop=asyncio.get_running_loop(), stop=(stop := asyncio.Event()))
        await daemon.run(stop)

    server.identify = identify  # type: ignore[assignment]
    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        wait_for((folder / "mixosd.sock").exists)
        os.chown(folder / "mixosd.sock", 0, 900)  # the image's group; the host may not have it
        yield callers
    finally:
        loop, stop = holder["loop"], holder["stop"]
        loop.call_soon_threadsafe(stop.set)  # type: ignore[attr-defined]
        joined(thread)
        server.identify = real


def wait_for(condition: object, log: Path | None = None) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + _SECONDS
    while not condition():  # type: ignore[operator]
        if time.monotonic() > deadline:
            raise AssertionError(log.read_text() if log else "it did not come to be")
        time.sleep(0.05)
