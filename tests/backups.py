"""Devices' folders, and backups of them."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from daemon.core.change import files
from daemon.core.change.files import Step, Trees, nothing
from daemon.parts.backup import archive
from daemon.parts.backup.part import _Made, manifest_now
from daemon.parts.backup.restore import Plan, Restorer
from daemon.parts.backup.sealed import seal, unseal

SECRET = "correct horse battery"


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


def device(base: Path, mark: str = "one") -> Trees:
    """A device's two folders; `mark` tells one device from another."""
    trees = Trees(base / "etc", base / "lib")
    for name in ("hostname", "timezone", "mixos/network.toml", "mixos/units/web.toml", "ssh/authorized_keys/admin"):
        write(trees.etc / name, f"{name} {mark}\n")
    write(trees.etc / "mixos/proxy.secret.toml", f"password {mark}", 0o600)
    write(trees.etc / "ssh/ssh_host_ed25519_key", f"key {mark}", 0o600)
    for end in (".pub", ".fingerprint"):
        write(trees.etc / f"ssh/ssh_host_ed25519_key{end}", f"key {mark}{end}")
    write(trees.etc / "passwd", "not ours")
    for name in ("vpn/wg0.key", "config/revisions.jsonl", "firewall.json", "idempotency/1", "changes/net.good"):
        write(trees.lib / "mixos" / name, f"{name} {mark}", 0o600)
    write(trees.lib / "web/db/data", f"state {mark}" * 50)
    (trees.lib / "web/current").symlink_to("db")
    return trees


def snapshot(trees: Trees) -> dict[str, tuple[int, object]]:
    """Everything below the two folders: mode and content."""
    found: dict[str, tuple[int, object]] = {}
    for base in (trees.etc, trees.lib):
        for path in sorted(base.rglob("*")):
            mode = path.lstat().st_mode
            content: object = None
            if stat.S_ISLNK(mode):
                content = os.readlink(path)
            elif stat.S_ISREG(mode):
                content = path.read_bytes()
            found[f"{base.name}/{path.relative_to(base)}"] = (mode, content)
    return found


def backup(trees: Trees, secrets: bool = True, state: dict[str, str] | None = None) -> bytes:
    made = _Made(trees, manifest_now(secrets, state or {}))
    return b"".join(seal(archive.write(made.items()), SECRET, 10))


def pieces(data: bytes) -> Iterator[bytes]:
    return unseal(io.BytesIO(data), SECRET)


def restorer(trees: Trees) -> Restorer:
    return Restorer(trees, "1")


def restore(trees: Trees, data: bytes, only: Sequence[str] = (), step: Step = nothing) -> Plan:
    """Prepare and carry out, as `daemon.core.change` does, which the tests of that kill at every step."""
    plan = restorer(trees).prepare(pieces(data), only)
    renames = plan.renames()
    try:
        files.do(renames, step)
    except OSError:
        files.undo(renames)
    files.clean(renames)
    return plan


STATE = {"web": "web"}


def prepared(base: Path) -> tuple[Trees, bytes, dict[str, tuple[int, object]]]:
    """A device that differs in all ways: changed, missing, additional; and how it looks before."""
    old, new = device(base / "a"), device(base / "b", "two")
    write(new.etc / "mixos/units/later.toml", "x")
    (new.etc / "timezone").unlink()
    write(old.etc / "mixos/profiles/deep/p.toml", "x")
    (new.lib / "mixos/backup").mkdir()
    return new, backup(old, state=STATE), snapshot(new)
