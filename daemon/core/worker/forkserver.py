"""The fork server: a small process without secrets, threads or parsers, from which the processes of parts are forked.

It shares the interpreter's memory with them, so that one costs little more than what it imports itself. It is forked
from mixosd before that has read or imported anything of ours; where there is none (in tests, or when it died), it is
executed anew. On its socket, one JSON object a packet:

    {"id", "name", "account": [uid, gid] or null, "profile": name or null, "files": count} with descriptors: the
        process's channel, its files, and maybe `cgroup.procs` of its control group ("cgroup": true)
    answered by {"id", "pid"} or {"id", "error"}, and {"ended": pid, "status": exit code or minus a signal} later
    {"beat": true}: mixosd's loop still turns

It is the watchdog of mixosd, too: without a beat for `SILENT` seconds it says so, and ends mixosd, which init starts
again. What counts is the time in which mixosd could have run: not that of a suspended machine, and not while it is
stopped by a signal or a debugger. When mixosd has ended, the processes get a moment to end by themselves.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from daemon.core.worker import child
from daemon.linux.become import keep_only, rename
from daemon.linux.log import log

MAX_PACKET = 16 << 10
MAX_FILES = 8
TICK = 5.0  # seconds between looks at mixosd, and between its beats
SILENT = 60.0  # seconds without a beat: as long as the hardware's watchdog waits (rootfs, 15-watchdog.sh)
_DESCRIPTOR = 3  # the socket of a server that was executed
GRACE = 5.0  # seconds that processes have to end after mixosd, and mixosd after SIGABRT


class ForkServer:
    """See the module. watched: the process id of mixosd when its beats are waited for; note: where to say why it was
    ended."""

    def __init__(self, control: socket.socket, watched: int = 0, note: Path | None = None) -> None:
        self.control = control
        self.watched = watched
        self.note = note
        self.children: set[int] = set()
        self.silent = 0.0
        self.looked = time.monotonic()
        self.wake, wakes = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)

    def run(self) -> None:
        """Until mixosd has gone."""
        poll = select.poll()
        for descriptor in (self.control.fileno(), self.wake):
            poll.register(descriptor, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll(TICK * 1000 if self.watched else None):
                if descriptor == self.wake:
                    self.reap()
                elif not self.serve():
                    self.finish()
                    return
            if self.watched:
                self.watch()

    def serve(self) -> bool:
        """One packet; whether mixosd is there."""
        data, descriptors, flags, _ = socket.recv_fds(self.control, MAX_PACKET, MAX_FILES)
        try:
            if not data:
                return False
            packet = json.loads(data)
            if "beat" in packet:
                self.silent = 0.0
            elif flags & socket.MSG_CTRUNC:  # the limit of open files is reached: the kernel left some out
                self.answer({"id": packet["id"], "error": "there are too many open files"})
            else:
                self.answer({"id": packet["id"], **self.fork(packet, descriptors)})
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def answer(self, packet: dict[str, Any]) -> None:
        """Say something, if mixosd is there."""
        with contextlib.suppress(OSError):
            self.control.send(json.dumps(packet).encode())

    def fork(self, wanted: dict[str, Any], descriptors: list[int]) -> dict[str, Any]:
        """A process: its id, or why there is none."""
        server = os.getpid()
        try:
            pid = os.fork()
        except OSError as error:
            return {"error": f"fork: {error.strerror}"}
        if pid == 0:
            _become_child(wanted, descriptors, server)
        self.children.add(pid)
        return {"pid": pid}

    def reap(self) -> None:
        """Tell of the processes that have ended."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake, 512):
                pass
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self.children.discard(found[0])
                self.answer({"ended": found[0], "status": os.waitstatus_to_exitcode(found[1])})

    def watch(self) -> None:
        """Count the time without a beat. When we did not run ourselves, neither could mixosd: that does not count."""
        now = time.monotonic()
        passed, self.looked = min(now - self.looked, 2 * TICK), now
        self.silent = 0.0 if _stopped(self.watched) else self.silent + passed
        if self.silent > SILENT and os.getppid() == self.watched:
            self.end_mixosd()

    def end_mixosd(self) -> None:
        """It has hung. SIGABRT lets it say where (faulthandler)."""
        reason = f"hung for {self.silent:.0f} s"
        log("err", f"mixosd {self.watched} {reason}: it is killed")
        if self.note is not None:
            with contextlib.suppress(OSError):
                self.note.write_text(reason + "\n")
        for number in (signal.SIGABRT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.watched, number)
            deadline = time.monotonic() + GRACE
            while os.getppid() == self.watched and time.monotonic() < deadline:
                time.sleep(0.05)
        self.watched = 0

    def finish(self) -> None:
        """mixosd has ended: so do the processes, which have seen it themselves."""
        deadline = time.monotonic() + GRACE
        while self.children and time.monotonic() < deadline:
            time.sleep(0.02)
            self.reap()
        for pid in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def _stopped(pid: int) -> bool:
    """Whether a signal or a debugger has stopped a process (proc_pid_stat(5))."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "tT"
    except OSError:
        return False


def _become_child(wanted: dict[str, Any], descriptors: list[int], server: int) -> NoReturn:
    """In the new process: leave the server's things, and never come back."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        if wanted.get("cgroup"):
            os.write(descriptors.pop(), b"0")
        keep_only(descriptors)
        child.main(wanted, descriptors, server)
        code = 0
    except BaseException as error:  # noqa: BLE001  # nothing above us may run in this process
        log("err", f"the process of {wanted.get('name')} ends: {type(error).__name__}: {error}")
    finally:
        os._exit(code)


def start(watch: bool, note: Path) -> tuple[int, socket.socket]:
    """Fork the server from this process, which has one thread and knows nothing yet: its process id, and mixosd's end
    of its socket."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    parent = os.getpid()
    gc.collect()
    gc.freeze()  # what is there already stays shared: the collector does not write to it
    server = os.fork()
    if server == 0:
        code = 1
        try:
            ours.close()
            _serve(theirs, parent if watch else 0, note)
            code = 0
        except BaseException as error:  # noqa: BLE001  # mixosd's code must not run in this process
            log("err", f"the fork server ends: {type(error).__name__}: {error}")
        finally:
            os._exit(code)
    theirs.close()
    return server, ours


def execute(watch: bool, note: Path) -> tuple[int, socket.socket]:
    """The same in a new program: its process id, and mixosd's end of its socket. Raises OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    code = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from daemon.core.worker import forkserver as one"
    words = [
        sys.executable,
        "-ISB",
        "-c",
        f"{code}; one.main()",
        json.dumps(sys.path),
        str(os.getpid() if watch else 0),
        str(note),
    ]
    with theirs:
        actions = [(os.POSIX_SPAWN_DUP2, theirs.fileno(), _DESCRIPTOR)]
        return os.posix_spawn(words[0], words, os.environ, file_actions=actions), ours


def main() -> None:
    """Entry point of `execute`."""
    gc.collect()
    gc.freeze()
    _serve(socket.socket(fileno=_DESCRIPTOR), int(sys.argv[2]), Path(sys.argv[3]))


def _serve(control: socket.socket, watched: int, note: Path) -> None:
    keep_only([control.fileno()])
    rename("mixosd:forks")
    control.set_inheritable(False)
    os.setsid()  # keys of a terminal are for mixosd
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    "".encode("unicode_escape")  # what `log` imports must be there before a process may not read it any more
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    ForkServer(control, watched, note).run()
