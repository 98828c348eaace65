"""Which name servers the device asks: `/run/mixos/dns/resolv.conf`, computed from files that say who contributes what.

The best group that is there wins as a whole, since musl asks all servers at once and takes the first answer:
the VPN's (`net/dns.vpn/NAME`), those of network.toml (`net/dns.file`), those of the settings (`net/configured.dns`),
those of one lease (`net/NAME.dns`), which the rest of its files tells (`_rank`). When network.toml has search domains
and no servers (`net/search.file`), they go behind the last two: of several such lines the last counts
(resolv.conf(5)). The script `init/dhcp` computes the same from the same files, so it does not matter who is the last to
do it. Nothing is saved and put back: a contribution that ends is a file less.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from common import netvalues as values

_MAX_FILE = 16 << 10


class Names:
    """The name servers in use, below the folder that the scripts of early boot and the daemon share."""

    def __init__(self, run: Path) -> None:
        self.folder = run / "net"
        self.target = run / "dns/resolv.conf"  # in a folder: sandboxes show that, and see each new file

    def set_file(self, servers: Sequence[str], search: Sequence[str]) -> None:
        """What network.toml says; nothing when both are empty."""
        self._put(self.folder / "dns.file", servers, search if servers else ())
        self._put(self.folder / "search.file", (), () if servers else search)
        self.refresh()

    def set_vpn(self, wanted: Mapping[str, tuple[Sequence[str], Sequence[str]]]) -> None:
        """Interface → servers and search domains, of every tunnel that is up; all others go."""
        folder = self.folder / "dns.vpn"
        for path in folder.glob("*"):
            if path.name not in wanted:
                path.unlink()
        for name, (servers, search) in wanted.items():
            self._put(folder / name, servers, search)
        self.refresh()

    def refresh(self) -> bool:
        """Write resolv.conf when it is not what the files make of it; whether it had to be written."""
        text = self.compute()
        try:
            if self.target.read_text("utf-8") == text:
                return False
        except (OSError, UnicodeDecodeError):
            pass
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.target.parent.chmod(0o755)  # whatever our umask is: everybody looks names up
        self._replace(self.target, text)
        return True

    def compute(self) -> str:
        """The text that resolv.conf shall have (resolv.conf(5))."""
        leases = sorted(path for path in self.folder.glob("*.dns") if path.name != "configured.dns")
        best = sorted(leases, key=self._rank)[:1]
        search = self.folder / "search.file"
        groups: list[tuple[Collection[Path], Collection[Path]]] = [
            (sorted((self.folder / "dns.vpn").glob("*")), ()),
            ([self.folder / "dns.file"], ()),
            ([self.folder / "configured.dns"], [search]),
            (best, [search]),
        ]
        group, more = next((pair for pair in groups if any(path.is_file() for path in pair[0])), groups[-1])
        found = [path.read_text("utf-8", "replace")[:_MAX_FILE] for path in (*group, *more) if path.is_file()]
        return "".join(line.strip() + "\n" for text in found for line in text.splitlines())

    def _rank(self, path: Path) -> int:
        """Of a lease, the lowest counts: the metric, of the daemon (NAME.want) or of the script (NAME.lease: address,
        end, metric, 1 for one without a router); then those without a router, then those whose cable is out (NAME.cut),
        then those without servers."""
        servers = "nameserver" in path.read_text("utf-8", "replace")[:_MAX_FILE].split()
        rank = (0 if servers else 4 << 40) + (2 << 40 if path.with_suffix(".cut").exists() else 0)
        try:
            words = path.with_suffix(".lease").read_text("ascii").split()
            rank += int(words[2]) + (int(words[3]) << 40)
            lines = path.with_suffix(".want").read_text("ascii").splitlines()
            metrics = [int(line.split()[1]) for line in lines if line.startswith("metric ")]
            return rank + metrics[0] - int(words[2]) if metrics else rank
        except (OSError, ValueError, IndexError):
            return rank

    def servers(self) -> list[str]:
        """The servers in resolv.conf, as it is."""
        try:
            lines = self.target.read_text("utf-8", "replace")[:_MAX_FILE].splitlines()
        except OSError:
            return []
        return [words[1] for line in lines if (words := line.split())[:1] == ["nameserver"] and len(words) > 1]

    def _put(self, path: Path, servers: Sequence[str], search: Sequence[str]) -> None:
        lines = [f"search {' '.join(search)}\n"] if search else []
        lines += [f"nameserver {values.host_address(server)}\n" for server in servers]
        if not lines:
            path.unlink(missing_ok=True)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._replace(path, "".join(lines))

    def _replace(self, path: Path, text: str) -> None:
        """Whole or not at all for readers; /run is memory, so nothing is synchronised."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".{path.name}.{os.getpid()}"
        temporary.write_text(text, encoding="utf-8")
        temporary.chmod(0o644)
        temporary.rename(path)
