"""Run an image in QEMU: a private disk, a state folder, start, find again, wait for SSH, stop cleanly.

The built image is never written: `prepare_disk` copies it (holes kept), grows it as if written to a larger disk, and
may put first-boot settings on it. Everything about one machine lies in its state folder, whose lock QEMU inherits, so a
second machine on the same disk is refused for as long as the first lives, however it was started.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from buildsys.files import data_ranges
from buildsys.run import CommandError, find_tool, run, spawn
from common.errors import ImageError, UsageError
from common.units import size as words
from image import accel, esp
from image.host import copy_range, opened
from image.machine import CONSOLE, MONITOR, SERIAL_LOG, TPM, VARIABLES, Machine, arguments, firmware
from image.qmp import Qmp

DISK = "disk.img"
_PID_FILE = "qemu.pid"
_PCAP_HEADER = 24  # bytes
_RECORD = "machine.json"
_LOCK = "lock"
_PORT_TRIES = 5
_START_SECONDS = 60.0
_PAUSE = 5.0  # seconds between attempts to reach an SSH server of which nothing is known yet
BUTTON_SECONDS = 10.0  # between two presses of the power button


def check_size(image: Path, size: int) -> None:
    """Raise ImageError `disk-too-small` unless a disk of that many bytes holds the image."""
    length = image.stat().st_size
    if size < length:
        message = f"a disk of {words(size)} is smaller than the image, {words(length)}"
        raise ImageError(message, reason="disk-too-small", hint="give it a larger size")


def prepare_disk(image: Path, disk: Path, size: int | None = None, preseed: str | None = None) -> Path:
    """Copy `image` to `disk` sparsely, grown to `size` bytes; put a preseed (checked TOML text) on its ESP.

    The partition table keeps describing the image's own size, as after writing it to a larger disk without a tool.
    Raises ImageError.
    """
    length = image.stat().st_size if image.is_file() else 0
    if size is not None and length:
        check_size(image, size)
    disk.parent.mkdir(parents=True, exist_ok=True)
    fresh = disk.with_name(disk.name + ".new")
    try:
        with opened(image) as source, opened(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as target:
            os.truncate(target, size or length)
            for start, end in data_ranges(source, length):
                copy_range(source, target, start, end, start)
        if preseed is not None:
            esp.inject_preseed(fresh, preseed, int(time.time()))
        fresh.replace(disk)
    finally:
        fresh.unlink(missing_ok=True)
    return disk


@dataclass(frozen=True)
class Running:
    """A machine that was started: its state folder, process id and start time (clock ticks after boot), SSH port."""

    state: Path
    pid: int
    start_time: int
    ssh_port: int | None
    acceleration: str
    disk: str

    @property
    def serial_log(self) -> Path:
        """What the guest wrote to its first serial port."""
        return self.state / SERIAL_LOG

    @property
    def console(self) -> Path:
        """Unix socket of the serial console (machines with serial="socket")."""
        return self.state / CONSOLE

    def alive(self) -> bool:
        """Whether this very process (not another one with its number) still runs."""
        return _start_time(self.pid) == self.start_time

    def qmp(self, timeout: float = 10.0) -> Qmp:
        """A connection to its monitor; each answer may take `timeout` seconds."""
        return Qmp(self.state / MONITOR, timeout)

    def serial_tail(self, size: int = 2000) -> str:
        """The last bytes of the serial log as text."""
        try:
            return self.serial_log.read_bytes()[-size:].decode("utf-8", "replace")
        except FileNotFoundError:
            return ""


def load(state: Path) -> Running | None:
    """The machine of a state folder, or None when none is alive there."""
    try:
        record = json.loads((state / _RECORD).read_text("utf-8"))
        running = Running(**{**record, "state": state})
    except (FileNotFoundError, ValueError, TypeError):
        return None
    return running if running.alive() else None


def start(machine: Machine, state: Path) -> Running:
    """Start a machine in the background and return once QEMU has set it up (the guest is only beginning to boot).

    Without an explicit port a free one is taken when `machine.ssh_port` is 0. Raises ImageError ("vm-running",
    "vm-start") or HostError.
    """
    if machine.serial == "stdio":
        raise UsageError("a machine in the background has no terminal", reason="bad-machine")
    chosen = accel.choose(machine.acceleration)
    with _prepared(machine, state) as lock:
        for attempt in range(1, _PORT_TRIES + 1):
            concrete = replace(machine, ssh_port=free_port()) if machine.ssh_port == 0 else machine
            argv = [*arguments(concrete, state, chosen), "-daemonize", "-pidfile", _PID_FILE]
            try:
                run(argv, cwd=state, pass_fds=(lock,), timeout=_START_SECONDS)
                break
            except CommandError as error:
                taken = b"host forwarding rule" in error.output
                if machine.ssh_port == 0 and taken and attempt < _PORT_TRIES:
                    continue
                raise ImageError(
                    f"QEMU did not start: {error.message}",
                    reason="port-taken" if taken else "vm-start",
                    hint="choose another --ssh-port" if taken else None,
                ) from error
        pid = int((state / _PID_FILE).read_text("ascii"))
        return _record(state, pid, concrete, chosen)


def attach(machine: Machine, state: Path) -> int:
    """Run a machine in the foreground on the caller's terminal; returns QEMU's exit status when it ends."""
    chosen = accel.choose(machine.acceleration)
    with _prepared(machine, state) as lock:
        concrete = replace(machine, ssh_port=free_port()) if machine.ssh_port == 0 else machine
        argv = [*arguments(concrete, state, chosen), "-pidfile", _PID_FILE]
        process = spawn(argv, cwd=state, pass_fds=(lock,), terminal=True)
        try:
            _record(state, process.pid, concrete, chosen)
            return process.wait()
        finally:
            if process.poll() is None:  # interrupted: nothing may outlive its terminal
                process.terminate()
                process.wait()
            (state / _RECORD).unlink(missing_ok=True)


@contextmanager
def _prepared(machine: Machine, state: Path) -> Iterator[int]:
    """The state folder made ready and locked; yields the descriptor of the lock, which QEMU inherits."""
    state.mkdir(parents=True, exist_ok=True)
    with opened(state / _LOCK, os.O_RDWR | os.O_CREAT) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ImageError(
                f"a machine is already running in {state}", reason="vm-running", hint="stop it with 'mixos stop'"
            ) from error
        for name in (_PID_FILE, _RECORD, MONITOR, CONSOLE, SERIAL_LOG, TPM):
            (state / name).unlink(missing_ok=True)
        if not (state / VARIABLES).exists():
            _, template = machine.firmware or firmware(secure_boot=machine.secure_boot)
            shutil.copyfile(template, state / VARIABLES)
        if machine.tpm:
            _start_tpm(state)
        yield lock


def _start_tpm(state: Path) -> None:
    """A software TPM 2.0 that ends with the machine (it stops when QEMU closes the connection)."""
    (state / "tpm").mkdir(exist_ok=True)
    argv: list[str | Path] = [find_tool("swtpm"), "socket", "--tpm2", "--daemon", "--terminate"]
    # As a daemon it works in the root folder: a relative path would be another one.
    run(
        [*argv, "--tpmstate", f"dir={state.absolute() / 'tpm'}", "--ctrl", f"type=unixio,path={TPM}"],
        cwd=state,
        timeout=_START_SECONDS,
    )


def _record(state: Path, pid: int, machine: Machine, chosen: accel.Acceleration) -> Running:
    started = _start_time(pid)
    if started is None:
        raise ImageError("QEMU ended at once", reason="vm-start")
    running = Running(state, pid, started, machine.ssh_port, chosen.name, str(machine.disk))
    fresh = state / f"{_RECORD}.new"
    fresh.write_text(json.dumps({**asdict(running), "state": str(state)}, indent=2) + "\n")
    fresh.replace(state / _RECORD)
    return running


def _start_time(pid: int) -> int | None:
    """Start time of a live process in clock ticks (proc(5), stat field 22); None when it is gone or a zombie.

    It lives while one thread does, with its lock and its disk: the first one's state alone says nothing.
    """
    try:
        handle = os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.EINVAL):  # none, or another one's thread
            return None
        raise
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return None if _ended(handle, 0.0) else int(fields[19])
    except (FileNotFoundError, ProcessLookupError):
        return None
    finally:
        os.close(handle)


def _ended(handle: int, seconds: float) -> bool:
    """Whether all threads of a pidfd's process end within that time."""
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    return bool(poller.poll(max(0.0, seconds) * 1000))


def free_port() -> int:
    """A TCP port of the loopback address that is free now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as link:
        link.bind(("127.0.0.1", 0))
        port: int = link.getsockname()[1]
        return port


@contextmanager
def _guest_packets(running: Running) -> Iterator[Callable[[], bool]]:
    """Tells whether the guest has sent a packet since: QEMU writes their first bytes to a file meanwhile."""
    path = running.state.resolve() / "packets.pcap"
    about = {"qom-type": "filter-dump", "id": "packets", "netdev": "net0", "queue": "rx", "maxlen": 64}

    def command(name: str, **arguments: Any) -> None:
        with suppress(ImageError), Qmp(running.state / MONITOR) as monitor:
            monitor.command(name, **arguments)

    command("object-del", id="packets")  # of a waiter that was killed
    command("object-add", file=str(path), **about)
    try:
        yield lambda: path.is_file() and path.stat().st_size > _PCAP_HEADER
    finally:
        command("object-del", id="packets")
        path.unlink(missing_ok=True)


def wait_ssh(running: Running, seconds: float) -> str:
    """Wait until the guest's SSH server greets and return its banner. Raises ImageError "vm-died" or "ssh-timeout"."""
    if running.ssh_port is None:
        raise UsageError("the machine has no forwarded port", reason="bad-machine")
    began = following = time.monotonic()
    attempts: dict[socket.socket, float] = {}  # and when each is given up
    with _guest_packets(running) as sent, ExitStack() as links:
        spoke = None
        while (now := time.monotonic()) < began + seconds:
            if not running.alive():
                raise ImageError(f"the machine ended; its last words:\n{running.serial_tail()}", reason="vm-died")
            if spoke is None and sent():
                spoke = following = now
            for link in [link for link, end in attempts.items() if end < now]:
                del attempts[link]
                link.close()
            if following <= now:
                # QEMU itself accepts the connection; only the banner proves that the guest answers. What QEMU sends to
                # a guest without an address it sends again only seconds later, even when the connection is closed, and
                # the server counts it as an attack: few attempts, and most of them when the guest is about to answer.
                pause = _PAUSE if spoke is None else max(_PAUSE / 20, (now - spoke) / 4)
                following = now + pause
                with suppress(OSError):
                    link = links.enter_context(socket.create_connection(("127.0.0.1", running.ssh_port), timeout=2))
                    attempts[link] = now + max(_PAUSE / 5, pause)
            for link in select.select(list(attempts), [], [], 0.05)[0]:
                banner = b""
                with suppress(OSError):
                    banner = link.recv(255)
                if banner.startswith(b"SSH-"):
                    return banner.split(b"\r\n")[0].split(b"\n")[0].decode("ascii", "replace")
                # Closed: the guest has an address, its server does not listen yet.
                del attempts[link]
                link.close()
                following = min(following, time.monotonic() + 0.1)
    raise ImageError(
        f"no SSH banner after {seconds:.0f} s; the console's last words:\n{running.serial_tail()}",
        reason="ssh-timeout",
        retryable=True,
    )


def wait_exit(running: Running, seconds: float) -> bool:
    """Wait until the machine ends by itself; whether it did."""
    try:
        handle = os.pidfd_open(running.pid)
    except ProcessLookupError:
        return True
    try:
        return not running.alive() or _ended(handle, seconds)
    finally:
        os.close(handle)


def stop(running: Running, seconds: float = 30.0) -> str:
    """End a machine: power button, after `seconds` QEMU's `quit`, at last SIGKILL.

    The button is pressed again every few seconds: a guest that is still booting does not notice the first time.
    Returns how it ended: "powerdown", "quit" or "kill".
    """
    deadline = time.monotonic() + seconds
    how = ""
    while not how and (left := deadline - time.monotonic()) > 0:
        how = "powerdown" if _press(running, "system_powerdown", min(left, BUTTON_SECONDS)) else ""
    how = how or ("quit" if _press(running, "quit", 5.0) else "")
    if not how:
        _kill(running)
    _forget(running)
    return how or "kill"


def _press(running: Running, command: str, patience: float) -> bool:
    """Give the monitor a command; whether the machine ended within `patience` seconds."""
    try:
        with running.qmp(timeout=3.0) as monitor:
            monitor.command(command)
    except ImageError as error:
        if error.reason not in ("qmp-closed", "qmp-connect", "qmp-timeout"):
            raise
    return wait_exit(running, patience)


def _kill(running: Running) -> None:
    """SIGKILL through a pidfd whose process was checked to be the right one, so a recycled number is never hit.

    Raises ImageError `vm-stuck`.
    """
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(running.pid)
        try:
            if running.alive():
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
    if not wait_exit(running, _START_SECONDS):
        raise ImageError(f"QEMU does not end (process {running.pid})", reason="vm-stuck", hint="look at its disk")


def _forget(running: Running) -> None:
    for name in (_PID_FILE, _RECORD, MONITOR, CONSOLE, TPM):
        (running.state / name).unlink(missing_ok=True)
