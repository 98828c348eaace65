"""The menu of the rescue entry, on a local console: what is wrong, and what can be done about it.

Whoever stands there has the device in their hands, yet no right to what is on it: nothing here shows data, settings or
keys. A shell is there only when the image allows it (`image.rescue` of mixos.toml, in the signed command line).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from common.efi.entries import Entry
from common.errors import MixosError
from common.safe import one_line, printable
from common.streams import open_missing
from daemon.linux import facts, process
from daemon.parts.update.boot import Disk
from daemon.parts.update.ending import ending
from daemon.rescue import found, repair
from daemon.rescue.found import Found, Version
from daemon.rescue.repair import Bundle

NETWORK_SECONDS = 30
_LOG_LINES = 40
Ask = Callable[[str], str]


def main(argv: Sequence[str] = ()) -> int:
    """One menu on the terminal that is our standard input; returns the exit code. Ends when the console goes away, and
    with Ctrl-C, after which init begins another one. `back`: see `back`."""
    open_missing()
    if list(argv) == ["back"]:
        return back()
    menu = Menu()
    try:
        menu.begin()
        while True:
            menu.turn()
    except (EOFError, KeyboardInterrupt):
        return 0


def back(root: Path = facts.ROOT) -> int:
    """Without anybody: have a version started that somebody went back from, when what they went to is not well. 0: the
    machine is to be restarted; 1: a person must see to it."""
    try:
        disks = found.wait_for_disks(root)
        if len(disks) != 1:
            return 1
        found.choose(disks[0], root)
        image = repair.go_back(disks[0], found.look(disks[0], root).versions)
    except (MixosError, OSError) as error:
        say(f"mixos: {_told(error)}\n")
        return 1
    if image is None:
        return 1
    say(f"mixos: no version is left to start; {image.version}, which was good, is started again\n")
    return 0


@dataclass(frozen=True)
class Choice:
    """A line of the menu."""

    text: str
    act: Callable[[], None]


class Menu:
    """See the module. ask: gives the line that somebody types after a prompt; EOFError when nobody can any more."""

    def __init__(self, ask: Ask | None = None, root: Path = facts.ROOT) -> None:
        self.ask = ask or _ask
        self.root = root
        self.disk: Disk | None = None
        self._turns = 0

    # -- one turn ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Find the disk; with several it is asked for."""
        release = facts.release(self.root)
        say(f"\nMixOS rescue {release.get('MIXOS_VERSION', '')}, Linux {os.uname().release}\n")
        disks = found.wait_for_disks(self.root)
        if not disks:
            say("No disk of MixOS was found.\n")
        elif len(disks) == 1:
            self._take(disks[0])
        else:
            self._choose_disk(disks)

    def turn(self) -> None:
        """Show what is wrong, then do one thing."""
        if self.disk is not None:
            tell(found.look(self.disk, self.root), first=not self._turns)
        self._turns += 1
        choices = self.choices()
        say("".join(f"  {number}  {choice.text}\n" for number, choice in enumerate(choices, 1)))
        answer = self.ask("number: ").strip()
        say("\n")
        if answer.isdigit() and 0 < int(answer) <= len(choices):
            try:
                choices[int(answer) - 1].act()
            except (MixosError, OSError) as error:
                say(f"That failed: {_told(error)}\n")
            except KeyboardInterrupt:
                say("stopped\n")
        say("\n")

    def choices(self) -> list[Choice]:
        """What can be done, in the order of the menu."""
        of_disk = [
            Choice("start a version again", self.start_again),
            Choice("connect to the network", self.connect),
            Choice("install a bundle", self.install),
            Choice("factory reset: erase all data and settings of this device", self.reset),
        ]
        shell = [Choice("open a shell", self.shell)] if self._shell_is_allowed() else []
        return [
            *(of_disk if self.disk is not None else []),
            Choice("show the last messages of the kernel", self.log),
            *shell,
            Choice("restart", lambda: self.leave("/usr/sbin/reboot")),
            Choice("switch off", lambda: self.leave("/usr/sbin/poweroff")),
        ]

    # -- what can be done --------------------------------------------------------------------------------------------

    def start_again(self) -> None:
        """Give a version its starts back, and leave those that would be started instead."""
        disk = self._disk()
        versions = [one for one in found.look(disk, self.root).versions if one.image.slot is not None]
        wanted = self._pick("version", [_version(one) for one in versions])
        if wanted is None:
            return
        repair.start_first(disk, versions[wanted].image)
        say(f"The next start is that of {versions[wanted].image.version}.\n")

    def connect(self) -> None:
        """A lease for each cable."""
        if not repair.connected(self.root):
            repair.connect(self.root)
        end = time.monotonic() + NETWORK_SECONDS
        say("Waiting for an address ...\n")
        while not (addresses := found.addresses(self.root)) and time.monotonic() < end:
            time.sleep(0.5)
        say("".join(f"address {one_line(one)}\n" for one in addresses) or "No address came. It is still tried.\n")

    def install(self) -> None:
        """From a USB disk, or from the network."""
        place = self.ask("URL of the bundle; nothing: look for one on USB disks: ").strip()
        bundle = place or self._on_usb()
        if bundle:
            version = repair.install(self._disk(), bundle, say, self.root)
            say(f"{version} is installed. The next start is that of {version}.\n")

    def _on_usb(self) -> Bundle | None:
        names = repair.bundles(self._disk(), self.root)
        if not names:
            say("No file *.mixb was found on another disk (FAT or ext4).\n")
            return None
        chosen = self._pick("bundle", [f"{one.name} on {one.device.name}" for one in names])
        return None if chosen is None else names[chosen]

    def reset(self) -> None:
        """Erase the data partition; the next start makes it anew."""
        say("This erases all data, settings and keys of this device. The versions stay.\n")
        if self.ask("Type RESET to do it: ").strip() != "RESET":
            say("Nothing was erased.\n")
            return
        repair.reset(self._disk())
        say("Done. The next start is like the first one.\n")

    def log(self) -> None:
        """What the kernel says, the last lines, and its last words before."""
        if words := ending(self.root).words:
            say(f"before this start: {one_line(words, 500)}\n")
        process.run(["/bin/sh", "-c", f"dmesg | tail -n {_LOG_LINES}"])

    def shell(self) -> None:
        """Root's, on this console."""
        say("exit comes back to the menu\n")
        environment = {"PATH": "/usr/bin:/usr/sbin", "HOME": "/root", "TERM": "linux"}
        os.waitpid(os.posix_spawn("/bin/sh", ["-sh"], environment), 0)

    def leave(self, program: str) -> None:
        """Restart or switch off."""
        process.run([program])
        time.sleep(60)  # init ends us

    # -- questions ---------------------------------------------------------------------------------------------------

    def _choose_disk(self, disks: Sequence[Disk]) -> None:
        say("Several disks have MixOS on them.\n")
        chosen = None
        while chosen is None:
            chosen = self._pick("disk", [one.path.name for one in disks])
        self._take(disks[chosen])

    def _pick(self, what: str, rows: Sequence[str]) -> int | None:
        if not rows:
            say(f"There is no {what}.\n")
            return None
        say("".join(f"  {number}  {printable(row)}\n" for number, row in enumerate(rows, 1)))
        answer = self.ask(f"{what}, nothing to go back: ").strip()
        return int(answer) - 1 if answer.isdigit() and 0 < int(answer) <= len(rows) else None

    def _take(self, disk: Disk) -> None:
        found.choose(disk, self.root)
        self.disk = disk

    def _disk(self) -> Disk:
        """The disk as it is now."""
        assert self.disk is not None
        self.disk = Disk.at(self.disk.path)
        return self.disk

    def _shell_is_allowed(self) -> bool:
        return "mixos.rescue=shell" in (facts.text(self.root / "proc/cmdline") or "").split()


def tell(what: Found, *, first: bool) -> None:
    """Why this was started, and what there is."""
    for problem in what.problems:
        say(f"{printable(problem)}\n")
    if what.next is not None:
        chosen = "This was chosen at the boot loader's menu. " if first else ""
        say(f"{chosen}The next start is that of {printable(what.next.image.version)}.\n")
    elif what.versions:
        say("No version is left to start:\n")
    else:
        say("There is no version to start.\n")
    say("".join(f"  {_version(one)}\n" for one in what.versions) + "\n")


def _version(one: Version) -> str:
    slot = f"slot {one.image.slot}" if one.image.slot else "no slot"
    return one_line(f"{one.image.version} ({slot}): {one.why or _left(one.image.entry)}", 300)


def _left(entry: Entry) -> str:
    return "can be started" if entry.left is None else f"{entry.left} starts left"


def _told(error: Exception) -> str:
    return one_line(error.message if isinstance(error, MixosError) else str(error), 500)


def say(text: str) -> None:
    """To the person at the console."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _ask(prompt: str) -> str:
    say(prompt)
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line
