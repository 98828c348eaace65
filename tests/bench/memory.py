"""Memory of processes, as the kernel of this host counts it (proc_pid_smaps(5), proc_pid_status(5))."""

from __future__ import annotations

from pathlib import Path


def sizes(text: str) -> dict[str, int]:
    """The rows `Name: NUMBER kB` of a file of /proc: KiB by name."""
    rows = (line.partition(":") for line in text.splitlines())
    return {name: int(words[0]) for name, _, rest in rows if (words := rest.split())[1:] == ["kB"]}


def proportional(pid: int) -> int:
    """KiB of a process; of a page that several map it has its share (PSS)."""
    return _of(pid, "smaps_rollup")["Pss"]


def private(pid: int) -> int:
    """KiB that would be free if this process ended: pages that nobody else maps."""
    rows = _of(pid, "smaps_rollup")
    return rows["Private_Clean"] + rows["Private_Dirty"]


def page_tables(pid: int) -> int:
    """KiB of the kernel's that describe its memory; in none of the other figures."""
    return _of(pid, "status")["VmPTE"]


def _of(pid: int, file: str) -> dict[str, int]:
    return sizes(Path(f"/proc/{pid}/{file}").read_text())
