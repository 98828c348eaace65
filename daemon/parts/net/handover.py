"""Who looks after an interface: the scripts of early boot, or the daemon because network.toml names it.

Early boot must not wait for Python, so the script `init/network` brings interfaces up as the settings say, and it keeps
the DHCP clients, which thereby outlive the daemon. The daemon says what it wants in files below /run/mixos/net:

    NAME.want      "dhcp": keep a client on this interface, whatever it is; "none": leave it alone; then for its leases
                   "metric NUMBER" of routes, and "mtu" when a lease has no say in that
    NAME.pid       the client's process, written by it
    NAME.started   the script looks after this interface; the script (or `release`) takes it away
    NAME.address   the interface has an IPv4 address (what time synchronisation waits for)
    NAME.earlier   addresses of an earlier lease, which go with the next one
    NAME.lease, .routes, .mtu, .local, .dns, .ntp, .carrier, .cut, .again
                   what the script keeps of a lease, for the next one
    wake           a pipe: a line makes the script look now
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from daemon.linux.log import log

STOP_SECONDS = 5.0


class EarlyBoot:
    """The files that the scripts and the daemon share."""

    def __init__(self, folder: Path, settings: Path) -> None:
        self.folder = folder
        self.settings = settings  # /etc/mixos/network.conf

    async def claim(self, name: str, dhcp: bool, metric: int = 0, mtu: bool = False) -> None:
        """From now on the daemon says what happens with `name`; a DHCP client that is wanted and runs goes on. For
        later leases: metric of their routes (0: by the interface's number); mtu: the daemon has set it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = ["dhcp", *([f"metric {metric}"] if metric else []), *(["mtu"] if mtu else [])] if dhcp else ["none"]
        self._write(name, "\n".join(lines))
        client = self.client(name)
        if not dhcp:
            (self.folder / f"{name}.earlier").unlink(missing_ok=True)
        if dhcp and client is None:
            (self.folder / f"{name}.started").unlink(missing_ok=True)  # a static set-up of the script
        elif not dhcp and client is not None:
            await self._stop(name, client)
        self.wake()

    async def release(self, name: str) -> None:
        """The script may do with `name` what the settings say; a client that it would start anyway goes on."""
        client = self.client(name)
        if client is not None and not self._starts_dhcp(name):
            self._write(name, "none")
            await self._stop(name, client)
        if client is None:
            for suffix in ("started", "address"):
                (self.folder / f"{name}.{suffix}").unlink(missing_ok=True)
        (self.folder / f"{name}.want").unlink(missing_ok=True)
        self.wake()

    def claimed(self) -> set[str]:
        """The interfaces that the daemon claimed since the boot."""
        return {path.name.removesuffix(".want") for path in self.folder.glob("*.want")}

    def set_address(self, name: str, address: str | None) -> None:
        """Say that an interface has a fixed IPv4 address, or none."""
        path = self.folder / f"{name}.address"
        if address is None:
            path.unlink(missing_ok=True)
        else:
            path.write_text(f"{address}\n", encoding="ascii")

    def lease(self, name: str) -> str | None:
        """The address that a running client has leased."""
        try:
            return (self.folder / f"{name}.address").read_text("ascii").strip() if self.client(name) else None
        except (OSError, ValueError):
            return None

    def until_lease(self, name: str, addresses: Iterable[str]) -> None:
        """A client that is started again will take these addresses of an earlier lease away when it has one, not
        before."""
        if self.client(name) is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / f"{name}.address").unlink(missing_ok=True)
            (self.folder / f"{name}.earlier").write_text("".join(f"{one}\n" for one in addresses), encoding="ascii")

    def wake(self) -> None:
        """Make the script look now; without it (another init, a test) nothing happens."""
        try:
            descriptor = os.open(self.folder / "wake", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENXIO):
                log("warning", f"cannot wake the network script: {error.strerror}")
            return
        with contextlib.suppress(BlockingIOError):
            os.write(descriptor, b"\n")
        os.close(descriptor)

    def _write(self, name: str, want: str) -> None:
        temporary = self.folder / f".{name}.want"
        temporary.write_text(f"{want}\n", encoding="ascii")
        temporary.rename(self.folder / f"{name}.want")

    def client(self, name: str) -> int | None:
        """The process of the DHCP client, when it runs and is one."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text("ascii"))
            command = Path(f"/proc/{pid}/comm").read_text("ascii", "replace").strip()
        except (OSError, ValueError):
            return None
        return pid if command in ("udhcpc", "busybox") else None

    async def _stop(self, name: str, pid: int) -> None:
        """End the client and wait until the script has cleaned up behind it: what it set must not be undone later."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while (self.folder / f"{name}.started").exists():
            if time.monotonic() > deadline:
                log("warning", f"the DHCP client of {name} did not end")
                return
            await asyncio.sleep(0.05)

    def _starts_dhcp(self, name: str) -> bool:
        """Whether the settings have the script run a client on `name`."""
        try:
            lines = self.settings.read_text("utf-8", "replace").splitlines()
        except OSError:
            lines = []
        found = dict(line.split("=", 1) for line in lines if "=" in line)
        return found.get("MODE", "dhcp") == "dhcp" and found.get("INTERFACE", "") in ("", name)
