"""A guest under test: made and reached by the code behind `mixos run`, `ssh` and `stop`, with a key of its own."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from buildsys.run import Completed, run
from buildsys.vm import Vm
from image import qemu
from image.machine import Machine

# An emulated guest on a busy host: generous limits, since no test judges times.
BOOT_SECONDS = 400.0
END_SECONDS = 240.0
COMMAND_SECONDS = 180.0
DISK_SIZE = 2 << 30

# The path of the loader's entry that was started and counted: UTF-16, behind four bytes of attributes.
COUNTED = "tail -c +5 /sys/firmware/efi/efivars/LoaderBootCountPath-* | tr -d '\\0'"

# sshd_config(5), PerSourcePenalties: what a server says to an address from which too many logins were refused.
PENALTY = b"Not allowed at this time"
PENALTY_SECONDS = 240.0


class KeyVm(Vm):
    """The machine of `mixos run` with a key that belongs to this test run, not to the user."""

    @property
    def key(self) -> Path:
        """The private key, made on first use."""
        path = self.state / "id_ed25519"
        if not path.exists():
            self.state.mkdir(parents=True, exist_ok=True)
            run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "boot test", "-f", path])
        return path

    def default_preseed(self) -> str:
        """Let the test's key in to every account."""
        public = self.key.with_suffix(".pub").read_text().strip()
        return "[ssh]\nroot-login = true\n" + "".join(
            f'[[ssh.keys]]\naccount = "{account}"\nkey = "{public}"\n'
            for account in ("admin", "root", "operator", "viewer", "agent")
        )


@dataclass
class Guest:
    """One virtual machine and its SSH connection. `port` overrides the forwarded port."""

    vm: KeyVm
    machine: Machine
    running: qemu.Running | None = None
    port: int | None = None

    # -- power -------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Switch on; returns before the firmware has done anything."""
        self.running = qemu.start(self.machine, self.vm.state)

    def wait_ssh(self, seconds: float = BOOT_SECONDS) -> str:
        """Wait for the SSH banner of the guest."""
        running = self.alive()
        return qemu.wait_ssh(replace(running, ssh_port=self.port or running.ssh_port), seconds)

    def wait_daemon(self, seconds: float = BOOT_SECONDS) -> None:
        """Wait until mixosd, all its parts and the services have come up; they start behind the SSH server."""

        def up() -> bool:
            states = {part["state"] for part in self.status()["parts"].values()}
            units = json.loads(self.run("mixctl service list --json"))["units"]
            return {"waiting", "starting"}.isdisjoint(states | {unit["state"] for unit in units})

        assert wait_until(lambda: self.attempt("mixctl ping").status == 0, seconds), self.serial[-3000:]
        assert wait_until(up, seconds), self.serial[-3000:]

    def stop(self, seconds: float = END_SECONDS) -> str:
        """The virtual power button; how the machine ended."""
        self.hang_up()
        return qemu.stop(self.alive(), seconds)

    def discard(self) -> None:
        """End it at once, if it still runs."""
        if self.running is not None and self.running.alive():
            self.hang_up()
            qemu.stop(self.running, 0.0)

    def alive(self) -> qemu.Running:
        """The running machine."""
        assert self.running is not None, "the machine was never started"
        return self.running

    def ended(self, seconds: float = END_SECONDS) -> bool:
        """Wait for the machine to end by itself; whether it did."""
        return qemu.wait_exit(self.alive(), seconds)

    # -- console -----------------------------------------------------------------------------------------------------

    @property
    def serial(self) -> str:
        """Everything the guest wrote to its serial port since it was switched on."""
        try:
            return (self.vm.state / "serial.log").read_bytes().decode("utf-8", "replace").replace("\r", "")
        except FileNotFoundError:
            return ""

    def wait_serial(self, pattern: str, seconds: float = BOOT_SECONDS, start: int = 0) -> re.Match[str]:
        """Wait for `pattern` on the console, from character `start` on."""
        found: list[re.Match[str]] = []

        def seen() -> bool:
            match = re.search(pattern, self.serial[start:])
            found.extend([match] if match else [])
            return match is not None

        running = self.alive()
        if not (wait_until(lambda: seen() or not running.alive(), seconds) and (found or seen())):
            raise AssertionError(f"{pattern!r} did not appear on the console; its end:\n{self.serial[-3000:]}")
        return found[0]

    # -- commands ----------------------------------------------------------------------------------------------------

    def command(self, user: str, *words: str, options: tuple[str, ...] = ()) -> list[str]:
        """The ssh argv. options: pairs for -o that win over the ordinary ones (ssh takes the first)."""
        first = [word for option in options for word in ("-o", option)]
        port = ["-p", str(self.port)] if self.port else []
        return ["ssh", *first, *port, *self.vm.ssh_command(user, words)[1:]]

    def attempt(self, command: str, user: str = "root", stdin: bytes | None = None) -> Completed:
        """Run a shell command in the guest over a shared connection; any status."""
        options = ("ControlMaster=auto", f"ControlPath={self.vm.state}/%r.mux", "ControlPersist=600", "BatchMode=yes")
        return self.connect(self.command(user, command, options=options), stdin)

    def connect(self, argv: list[str], stdin: bytes | None = None) -> Completed:
        """Run an ssh command; any status. Waits while the server punishes this address for refused logins before."""
        alive = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4")
        words = [argv[0], *alive, *argv[1:]]
        deadline = time.monotonic() + PENALTY_SECONDS
        while True:
            done = run(words, stdin=stdin, allow=range(256), timeout=COMMAND_SECONDS, split=True)
            if done.status != 255 or PENALTY not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(3)

    def run(self, command: str, user: str = "root", stdin: bytes | None = None) -> str:
        """The output of a command that must succeed."""
        done = self.attempt(command, user, stdin)
        assert done.status == 0, f"{command!r} ended with {done.status}:\n{done.text}\n{done.stderr.decode()}"
        return done.text

    def lines(self, command: str, user: str = "root") -> list[str]:
        """The output of a command, line by line."""
        return self.run(command, user).splitlines()

    def status(self) -> dict[str, Any]:
        """`mixctl status --json`."""
        found: dict[str, Any] = json.loads(self.run("mixctl status --json"))
        return found

    def hang_up(self) -> None:
        """Close the shared connections, which would otherwise outlive the guest."""
        for path in self.vm.state.glob("*.mux"):
            run(["ssh", "-o", f"ControlPath={path}", "-O", "exit", "guest"], allow=range(256))
            path.unlink(missing_ok=True)

    def reboot(self) -> None:
        """`mixctl reboot`, and wait until the next boot answers."""
        before, start = self.run("cat /proc/sys/kernel/random/boot_id"), len(self.serial)
        self.run("mixctl reboot")
        self.hang_up()
        self.wait_serial("reboot: Restarting system", END_SECONDS, start)
        self.wait_ssh()
        self.wait_daemon()
        assert self.run("cat /proc/sys/kernel/random/boot_id") != before


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Poll until `condition` holds; whether it did in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def pids(guest: Guest, name: str) -> set[str]:
    """Processes that init started and whose command name is `name`."""
    show = f'[ "$c" = {name} ] && echo ${{d#/proc/}} $(cut -d" " -f4 $d/stat)'
    rows = guest.lines(f"for d in /proc/[0-9]*; do read -r c 2>/dev/null <$d/comm && {show}; done; :")
    return {row[0] for row in map(str.split, rows) if row[1:] == ["1"]}


@dataclass(frozen=True)
class FirstBoot:
    """What the shared guest was like when it had come up for the first time.

    seconds: power-on to SSH banner. at_once: `mixctl status` as the first thing that anybody ran over SSH.
    """

    seconds: float
    at_once: Completed
    serial: str
    status: dict[str, Any]
    host_key: str
    counted: str


@dataclass
class Shared:
    """The long-lived guest, the files of its ESP before it was ever started, and what its first boot was like."""

    guest: Guest
    esp: dict[str, bytes]
    first: FirstBoot
