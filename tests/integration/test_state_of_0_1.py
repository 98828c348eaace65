"""State that version 0.1 left is read, or taken over, by this one (commit 9c32520 wrote the archive)."""

from __future__ import annotations

import asyncio
import tarfile
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from daemon.core.change.applier import Wish
from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.parts.backup.part import Backup
from daemon.parts.backup.restore import Restorer
from daemon.parts.config.part import Config, Page, Target
from daemon.parts.firewall.part import Firewall
from daemon.parts.net.part import Interfaces
from daemon.parts.proxy.part import Proxy
from daemon.parts.vpn.edits import VpnConfig
from tests.backups import pieces
from tests.integration.boxes import addresses, cable
from tests.integration.namespaces import Space, spaces

DATA = Path(__file__).resolve().parents[1] / "data/state-0.1.tar.xz"
ME = Caller(Role.ADMIN, 0, 0, 1, "me", "local")


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """A device that was updated: the boot is another one, so nothing of the old one is in the kernel."""
    with tarfile.open(DATA) as archive:
        archive.extractall(tmp_path, filter="tar")
    names = ("run", "var/lib/mixos", "etc/mixos", "lib", "log")
    context = Context(*(tmp_path / name for name in names))
    for folder in (context.run, context.log):
        folder.mkdir()
    return context


@pytest.fixture
def space() -> Iterator[Space]:
    with spaces("updated") as (one,):
        yield one


def do(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    return asyncio.run(work())


def test_an_undo_that_was_cut_off_is_carried_out_and_the_history_is_there(context: Context) -> None:
    async def work() -> list[dict[str, Any]]:
        config = Config(context)
        await config.start()
        await config.stop()
        return [dict(row) for row in await config.revisions(ME, Page())]

    rows = do(work)
    assert [row["who"] for row in rows][-3:] == ["admin", "admin", "admin"]
    assert rows[0]["why"] == "undo to revision 1"
    assert (context.etc / "units/hello.toml").read_text().startswith("# first")
    assert not (context.etc / "vpn.toml").exists()  # revision 1 had no more
    assert not (context.state / "config/undo.json").exists()


def test_an_undo_of_what_the_old_version_recorded(context: Context) -> None:
    async def work() -> Any:
        (context.state / "config/undo.json").unlink()
        config = Config(context)
        await config.start()
        answer = await config.undo(ME, Target(revision=2))
        await config.stop()
        return answer

    assert "units/hello.toml" not in do(work)["changed-files"]
    assert (context.etc / "units/hello.toml").read_text().startswith("# second")


def test_a_firewall_on_trial_is_over_and_what_was_good_is_in_force(context: Context, space: Space) -> None:
    async def work() -> tuple[Any, Any]:
        part = Firewall(context)
        await part.start()
        status = await part._status(ME, part.methods()[0].params())  # type: ignore[arg-type]
        await part.stop()
        return status["state"], [zone["name"] for zone in status["zones"]]

    assert space.go(work) == ("on", ["lan"])
    assert not (context.state / "firewall").exists()
    assert b"nftables" in (context.state / "firewall.json").read_bytes()


@pytest.mark.usefixtures("namespace")
def test_a_network_on_trial_is_over_and_what_was_confirmed_is_in_force(context: Context) -> None:
    async def work() -> tuple[Any, set[str]]:
        cable("eth0", "far0")
        part = Interfaces(context)
        await part.start()
        found = part.status()
        await part.stop()
        return found, addresses("eth0")

    status, there = do(work)
    assert (status["file"], status["managed"]) == ("reverted", ["eth0"])
    assert there == set()  # not the address that was tried
    assert 'mode = "static"' in (context.etc / "network.toml").read_text()  # what people wrote stays
    assert not (context.state / "net").exists()


def test_keys_and_passwords_are_read(context: Context) -> None:
    async def work() -> str | None:
        part = Proxy(context)
        await part.start()
        return part.settings.url("http")

    assert do(work) == "http://me:secret@192.0.2.1:3128"
    assert VpnConfig(context.changes.places).store.read("wg0.key") == bytes([5]) * 32
    assert VpnConfig(context.changes.places).tunnel("wg0")[1].port == 51820


def test_a_backup_of_the_old_version_is_restored(context: Context, tmp_path: Path) -> None:
    (context.etc / "firewall.toml").write_text("changed\n")
    (context.etc / "later.toml").write_text("x = 1\n")

    async def work() -> Any:
        await Backup(context).start()
        number = context.changes.number()
        plan = Restorer(context.changes.places, number).prepare(pieces((tmp_path / "kitchen.mixbackup").read_bytes()))
        return await context.changes.make(ME, Wish(), "restore", staged=(number, plan.renames()))

    assert do(work)["applied"]
    assert (context.etc / "firewall.toml").read_text().startswith('default-zone = "lan"')
    assert not (context.etc / "later.toml").exists()
