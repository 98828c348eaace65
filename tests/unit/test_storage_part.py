"""Disks, mounts, usage, quotas and the part that offers them."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from common.errors import MixosError
from daemon.core.change import files
from daemon.core.method import ADMINS, OPERATORS, Caller, Nothing, Role
from daemon.core.part import Context
from daemon.linux import mounts, quotactl
from daemon.parts.storage import disks, health, quota, usage
from daemon.parts.storage import verbs as command
from daemon.parts.storage.part import Limit, Storage
from daemon.parts.storage.trim import trim
from tests.hostpackages import ROOT

CALLER = Caller(Role.ADMIN, 0, 0, 1, "root", "local")
MOUNTINFO = """\
22 1 252:0 / / ro,relatime - squashfs /dev/root ro
30 22 254:6 / /data rw,nosuid - ext4 /dev/vda6 rw,prjquota
31 22 0:40 / /etc rw,nosuid - overlay overlay rw,lowerdir=/etc,upperdir=/data/overlay/etc/upper,workdir=/w
32 22 0:41 / /var rw,nosuid - overlay overlay rw,lowerdir=/var,upperdir=/data/over\\040lay/var/upper,workdir=/w
33 22 0:5 / /proc rw - proc proc rw
"""


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")


@pytest.fixture
def root(tmp_path):
    """A device as /sys and /proc show it: root on verity on vda2, data on vda6, a stick."""
    put(tmp_path / "proc/self/mountinfo", MOUNTINFO)
    vda, sda = tmp_path / "sys/block/vda", tmp_path / "sys/block/sda"
    for name, text in {"size": "2048000", "ro": "0", "removable": "0", "dev": "254:0", "serial": "disk-1"}.items():
        put(vda / name, text)
    put(vda / "queue/rotational", "0")
    put(vda / "queue/discard_max_bytes", "4096")
    put(vda / "device/vendor", "0x1af4")
    for number, label in ((2, "mixos-root-b"), (6, "mixos-data")):
        part = vda / f"vda{number}"
        put(part / "partition", str(number))
        put(part / "size", "1024")
        put(part / "ro", "0")
        put(part / "dev", f"254:{number}")
        put(part / "uevent", f"MAJOR=254\nPARTN={number}\nPARTNAME={label}")
    put(vda / "vda2/holders/dm-0/dev", "252:0")
    put(tmp_path / "sys/block/dm-0/dev", "252:0")
    put(tmp_path / "sys/block/dm-0/slaves/vda2/uevent", "PARTNAME=mixos-root-b")
    put(sda / "device/vendor", "ATA")
    put(sda / "device/model", "FAST DISK")
    put(sda / "queue/rotational", "1")
    put(tmp_path / "sys/block/loop0/size", "0")
    return tmp_path


def test_disks(root):
    sda, vda = disks.disks(root)
    assert (vda["boot"], vda["slot"], vda["size"], vda["trim"], vda["serial"]) == (
        True,
        "b",
        2048000 * 512,
        True,
        "disk-1",
    )
    assert (vda["kind"], vda["model"]) == ("virtio", None)
    assert [(part["gpt-name"], part["mounted"], part["used-by"]) for part in vda["partitions"]] == [
        ("mixos-root-b", ["/"], ["dm-0"]),
        ("mixos-data", ["/data"], []),
    ]
    assert (sda["kind"], sda["model"], sda["rotational"], sda["boot"], sda["slot"]) == (
        "ata",
        "ATA FAST DISK",
        True,
        False,
        None,
    )


def test_where_an_overlay_keeps_its_files(root):
    table = mounts.mounts(root)
    assert mounts.backing(Path("/var/lib/web"), table) == Path("/data/over lay/var/upper/lib/web")
    assert mounts.backing(Path("/etc"), table) == Path("/data/overlay/etc/upper")
    assert mounts.backing(Path("/data/x"), table) == Path("/data/x")
    assert mounts.holding(Path("/database"), table).point == "/"
    assert [one.read_only for one in table[:2]] == [True, False]


def test_garbage_in_mountinfo(tmp_path):
    put(tmp_path / "proc/self/mountinfo", "\n - \n1 2 3\nx - y\n" + MOUNTINFO)
    assert len(mounts.mounts(tmp_path)) == 5


def test_usage_counts_blocks_once_and_says_when_it_stopped(tmp_path, monkeypatch):
    lib, log = tmp_path / "lib", tmp_path / "log"
    for path, size in (
        (lib / "web/a", 200_000),
        (lib / "mixos/b", 40_000),
        (log / "c", 80_000),
        (lib / "db/d", 10_000),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size))
    os.link(lib / "web/a", lib / "web/second")
    (lib / "web/link").symlink_to("/usr")
    os.sync()
    found = usage.breakdown(tmp_path, lib, log)
    web, db = found["units"]
    assert (web["name"], db["name"]) == ("web", "db")
    assert 200_000 <= web["bytes"] < 240_000
    assert 40_000 <= found["daemon"] < 60_000
    assert 80_000 <= found["logs"] < 100_000
    assert found["complete"] is True
    monkeypatch.setattr(usage, "MAX_NAMES", 2)
    assert usage.breakdown(tmp_path, lib, log)["complete"] is False
    assert usage.breakdown(tmp_path, lib, log, seconds=-1)["complete"] is False


def test_usage_reads_no_further_than_it_counts(tmp_path, monkeypatch):
    """A unit's folder with millions of names must not become a list in memory."""
    (tmp_path / "lib/web").mkdir(parents=True)
    for number in range(2000):
        (tmp_path / f"lib/web/{number}").touch()
    monkeypatch.setattr(usage, "MAX_NAMES", 10)
    real, read = os.scandir, []

    def counted(folder: int) -> Iterator[Any]:
        with real(folder) as entries:
            yield from (read.append(entry.name) or entry for entry in entries)

    monkeypatch.setattr(os, "scandir", counted)
    assert usage.breakdown(tmp_path, tmp_path / "lib", tmp_path / "log")["complete"] is False
    assert len(read) == 11


# case: H11
def test_a_tree_may_be_deeper_than_any_path(tmp_path, monkeypatch):
    """Three times as deep as Python recurses, with names as long as they can be: far beyond PATH_MAX."""
    (tmp_path / "lib/deep").mkdir(parents=True)
    at = os.open(tmp_path / "lib/deep", os.O_RDONLY)
    for level in range(3 * sys.getrecursionlimit()):
        os.mkdir("d" * (255 if level % 2 else 1), dir_fd=at)
        inner = os.open("d" * (255 if level % 2 else 1), os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    open_before = len(os.listdir("/proc/self/fd"))
    try:
        monkeypatch.setattr(quotactl, "_attributes", lambda _: bytes(28))
        monkeypatch.setattr(quotactl.fcntl, "ioctl", lambda *_: 0)
        with pytest.raises(MixosError) as caught:
            quotactl.assign(tmp_path / "lib/deep", 1000)
        assert caught.value.reason == "quota-too-many"
        found = usage.breakdown(tmp_path, tmp_path / "lib", tmp_path / "log")
        assert found["complete"] is False
        assert len(os.listdir("/proc/self/fd")) <= open_before
    finally:
        files.remove(tmp_path / "lib/deep")


# case: H5
def test_what_left_its_quota_is_brought_back_and_told(tmp_path, kernel, monkeypatch):
    context = place(tmp_path)
    part, found = Storage(context, tmp_path), []
    part.quotas.set("web", 1 << 20)
    assert [row["enforced"] for row in part.quotas.rows()] == [True]
    monkeypatch.setattr(quotactl, "project_of", lambda folder: 0)
    assert [row["enforced"] for row in part.quotas.rows()] == [False]
    kept = iter([3, 0])
    monkeypatch.setattr(quotactl, "assign", lambda top, project: next(kept))

    async def script() -> None:
        task = asyncio.create_task(listen(context, found))
        await asyncio.sleep(0)
        await part._gather()
        await part._gather()
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(script())
    assert found == [("storage.quota", "web", {"files": 3})]


def test_quota_blocks():
    """struct if_dqblk, linux/quota.h: hard and soft limit in KiB, space in bytes, ..., what is valid."""
    assert quotactl.encode(200 << 20).hex() == "0020030000000000" * 2 + "00" * 48 + "0100000000000000"
    assert quotactl.encode(1)[:8] == b"\1" + bytes(7)
    assert quotactl.encode(None) == bytes(64) + b"\1" + bytes(7)
    block = bytearray(quotactl.encode(4096))
    block[16:24] = (12345).to_bytes(8, "little")
    block[40:48] = (6).to_bytes(8, "little")
    assert quotactl.decode(bytes(block)) == quotactl.Usage(12345, 4096, 6)


UNIT = '[service]\ncommand = ["/bin/true"]\nstate-directory = "web-data"\n'


def place(tmp_path: Path) -> Context:
    base = tmp_path / "device"
    context = Context(base / "run", base / "var/lib/mixos", base / "etc/mixos", base / "usr", base / "var/log/mixos")
    for folder in (context.run, context.state, context.log):
        folder.mkdir(parents=True)
    put(context.etc / "units/web.toml", UNIT)
    return context


def test_a_file_system_without_project_quotas_is_told(tmp_path):
    context = place(tmp_path)
    quotas = quota.Quotas(context)
    with pytest.raises(MixosError) as caught:
        quotas.set("web", 1 << 20)
    assert caught.value.reason == "quota-unsupported"
    assert quotas.read() == {}
    with pytest.raises(MixosError) as caught:
        quotas.set("wbe", 1 << 20)
    assert caught.value.reason == "quota-unit"


@pytest.fixture
def kernel(monkeypatch):
    """The four system calls, recorded."""
    calls: list[Any] = []
    projects: dict[str, int] = {}
    limits: dict[int, int | None] = {}

    def assign(top: Path, project: int) -> None:
        calls.append(("assign", top.name, project))
        projects[str(top)] = project

    monkeypatch.setattr(quotactl, "enforce", lambda folder: calls.append(("enforce", folder.name)))
    monkeypatch.setattr(quotactl, "put", lambda folder, project, limit: limits.update({project: limit}))
    monkeypatch.setattr(quotactl, "get", lambda folder, project: quotactl.Usage(77, limits.get(project), 1))
    monkeypatch.setattr(quotactl, "project_of", lambda folder: projects.get(str(folder), 0))
    monkeypatch.setattr(quotactl, "assign", assign)
    return calls


def test_limits_are_kept_and_put_in_force_again(tmp_path, kernel):
    context = place(tmp_path)
    quotas = quota.Quotas(context)
    row = quotas.set("web", 5 << 20)
    assert row == {
        "unit": "web",
        "folder": "web-data",
        "limit": 5 << 20,
        "used": 77,
        "enforced": True,
        "problem": None,
    }
    put(context.etc / "units/db.toml", UNIT.replace("web-data", "db"))
    quotas.set("db", 1 << 20)
    assert [one.project for one in quotas.read().values()] == [1001, 1000]
    assert kernel == [
        ("enforce", "web-data"),
        ("assign", "web-data", 1000),
        ("enforce", "db"),
        ("assign", "db", 1001),
    ]
    kernel.clear()
    assert quota.Quotas(context).restore() == {}
    assert kernel == [("enforce", "db"), ("enforce", "web-data")]
    assert quotas.set("web", None)["enforced"] is False
    assert stat_mode(quotas.path) == 0o600


def test_a_cut_while_files_get_their_project_is_finished_at_the_next_start(tmp_path, kernel, monkeypatch):
    """The folder itself is the first to get it, so that it has it says nothing about what is in it."""
    quotas = quota.Quotas(place(tmp_path))

    def cut(top: Path, project: int) -> None:
        real(top, project)
        raise KeyboardInterrupt

    real = quotactl.assign
    with monkeypatch.context() as patch:
        patch.setattr(quotactl, "assign", cut)
        with pytest.raises(KeyboardInterrupt):
            quotas.set("web", 5 << 20)
    kernel.clear()
    again = quota.Quotas(quotas.context)
    assert again.restore() == {}
    assert kernel == [("enforce", "web-data"), ("assign", "web-data", 1000)]
    kernel.clear()
    assert again.restore() == {}
    assert kernel == [("enforce", "web-data")]


def test_a_limit_that_cannot_be_set_is_what_it_was(tmp_path, kernel, monkeypatch):
    quotas = quota.Quotas(place(tmp_path))

    def fail(top: Path, project: int) -> None:
        raise quotactl.QuotaError("too many", reason="quota-too-many")

    with monkeypatch.context() as patch:
        patch.setattr(quotactl, "assign", fail)
        with pytest.raises(MixosError) as caught:
            quotas.set("web", 5 << 20)
    assert caught.value.reason == "quota-too-many"
    (row,) = quotas.rows()
    assert (row["limit"], row["enforced"]) == (None, False)
    assert quotas.set("web", 6 << 20)["limit"] == 6 << 20


def test_limits_set_at_once_have_numbers_of_their_own(tmp_path, kernel):
    context = place(tmp_path)
    names = [f"unit-{number}" for number in range(8)]
    for name in names:
        put(context.etc / f"units/{name}.toml", UNIT.replace("web-data", name))
    quotas = quota.Quotas(context)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(quotas.set, names, [1 << 20] * 8))
    assert sorted(one.project for one in quotas.read().values()) == list(range(1000, 1008))


def test_what_is_in_the_way_of_one_folder_stops_no_other(tmp_path, kernel):
    context = place(tmp_path)
    put(context.etc / "units/db.toml", UNIT.replace("web-data", "db"))
    quotas = quota.Quotas(context)
    for name in ("web", "db"):
        quotas.set(name, 1 << 20)
    (context.state.parent / "db").rmdir()
    put(context.state.parent / "db", "a file")
    kernel.clear()
    assert quotas.restore() == {"db": "quota-failed"}
    assert kernel == [("enforce", "web-data")]


def test_the_limit_of_a_unit_that_is_gone_can_be_taken_away(tmp_path, kernel):
    context = place(tmp_path)
    quotas = quota.Quotas(context)
    quotas.set("web", 1 << 20)
    (context.etc / "units/web.toml").unlink()
    with pytest.raises(MixosError) as caught:
        quotas.set("web", 2 << 20)
    assert caught.value.reason == "quota-unit"
    assert quotas.set("web", None)["limit"] is None
    assert quotas.rows() == []
    put(context.etc / "units/db.toml", UNIT.replace("web-data", "db"))
    quotas.set("db", 1 << 20)
    assert quotas.read()["db"].project == 1001


def test_limits_are_put_in_force_after_a_restore(tmp_path, kernel):
    context = place(tmp_path)

    async def script() -> None:
        part = Storage(context, tmp_path)
        part.quotas.set("web", 1 << 20)
        await part.start()
        kernel.clear()
        context.events.publish("backup.restored", "here", units=["web"])
        for _ in range(200):
            await asyncio.sleep(0.01)
            if kernel:
                break
        await part.stop()

    asyncio.run(script())
    assert ("enforce", "web-data") in kernel


def stat_mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]x",
        '{"web": {"project": 3}}',
        '{"web": {"project": 1000, "limit": 99999999999999999999999}}',
        '{"web": 5}',
        "7",
    ],
)
def test_a_damaged_file_of_limits(tmp_path, text):
    quotas = quota.Quotas(place(tmp_path))
    put(quotas.path, text)
    with pytest.raises(MixosError) as caught:
        quotas.read()
    assert caught.value.reason == "quota-file"


def test_trim_where_there_is_none():
    with pytest.raises(MixosError) as caught:
        trim(Path("/proc"))
    assert caught.value.reason == "trim-unsupported"


@pytest.mark.parametrize(("text", "size"), [("200M", 200 << 20), ("1", 1), ("3T", 3 << 40), (None, None)])
def test_sizes(text, size):
    assert Limit(unit="web", size=text).bytes == size


@pytest.mark.parametrize("text", ["0", "-1", "1.5G", "1m", "", "M", "9" * 19, "9" * 15 + "T", "1048577T"])
def test_wrong_sizes(text):
    with pytest.raises(ValidationError):
        Limit(unit="web", size=text)


async def listen(context: Context, found: list[Any]) -> None:
    async for event in context.events.listen("storage."):
        found.append((event.topic, event.subject, dict(event.data)))


# case: H10
def test_errors_of_the_data_file_system_are_told(tmp_path):
    context = place(tmp_path)
    part, found = Storage(context, tmp_path / "data", tmp_path), []
    line = "36 35 254:5 / {} rw,nosuid - ext4 /dev/vda5 {},errors=remount-ro\n"

    async def script() -> None:
        task = asyncio.create_task(listen(context, found))
        await asyncio.sleep(0)
        for options, errors in (("rw", 0), ("rw", 2), ("ro", 3), ("ro", 3)):
            put(tmp_path / "proc/self/mountinfo", line.format(tmp_path / "data", options))
            put(tmp_path / "sys/fs/ext4/vda5/errors_count", f"{errors}\n")
            part._look()
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(script())
    assert found == [
        ("storage.errors", str(tmp_path / "data"), {"read-only": False, "errors": 2}),
        ("storage.errors", str(tmp_path / "data"), {"read-only": True, "errors": 3}),
    ]
    assert (part.status()["data-read-only"], part.status()["data-errors"]) == (True, 3)


# case: H10
def test_the_data_file_system_is_not_written_after_an_error():
    (mount,) = [
        line
        for line in (ROOT / "rootfs/skeleton/usr/lib/mixos/init/disk").read_text().splitlines()
        if "ext4 -o" in line
    ]
    assert "errors=remount-ro" in mount.split()[4].split(",")


def test_events(tmp_path, monkeypatch):
    """Full once, room once; a disk that becomes bad, once."""
    context = place(tmp_path)
    part, found = Storage(context, tmp_path), []
    percent = iter([50.0, 91.0, 95.0, 88.0, 84.0, 91.0])

    def fill(path: object) -> SimpleNamespace:
        used = int(next(percent) * 10)
        return SimpleNamespace(f_blocks=1000, f_bfree=1000 - used, f_bavail=1000 - used)

    async def script() -> None:
        task = asyncio.create_task(listen(context, found))
        await asyncio.sleep(0)
        monkeypatch.setattr(os, "statvfs", fill)
        for _ in range(6):
            part._look()
        for state in ("ok", "failing", "failing", "ok"):
            part._judge([{"name": "sda", "state": state, "findings": [{"slug": "threshold"}]}])
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(script())
    assert [(topic, data.get("percent", data.get("state"))) for topic, _, data in found] == [
        ("storage.full", 91.0),
        ("storage.space", 84.0),
        ("storage.full", 91.0),
        ("storage.health", "failing"),
        ("storage.health", "ok"),
    ]


def test_a_disk_that_hangs_holds_one_thread(tmp_path, monkeypatch):
    go, asked = threading.Event(), []

    def hang(root: Path) -> list[dict[str, Any]]:
        asked.append(root)
        go.wait(20)
        return [{"name": "sda", "state": "ok", "findings": []}]

    monkeypatch.setattr(health, "health", hang)

    async def script() -> list[Any]:
        part = Storage(place(tmp_path), tmp_path)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(part._health(CALLER, Nothing()), 0.1)
        waiting = [asyncio.create_task(part._health(CALLER, Nothing())) for _ in range(50)]
        await asyncio.sleep(0)
        go.set()
        return [*await asyncio.gather(*waiting)]

    assert {rows[0]["state"] for rows in asyncio.run(script())} == {"ok"}
    assert len(asked) == 1


def test_the_part_and_its_commands(tmp_path, root, monkeypatch):
    context = place(tmp_path / "d")
    (tmp_path / "d/device/var/lib/web-data").mkdir()
    part = Storage(context, tmp_path / "d", root)
    methods = {one.name: one for one in part.methods()}

    def ask(name: str, params: Any = None, **_: Any) -> Any:
        method = methods[name]
        model = method.params.model_validate(params or {})
        return json.loads(json.dumps(asyncio.run(method.handler(CALLER, model))))  # type: ignore[arg-type]

    monkeypatch.setattr(command, "ask", ask)
    runner = CliRunner()
    for arguments, words in (
        (["disks"], ["vda", "mixos-data", "boot disk, slot b", "/data"]),
        (["usage"], ["TAKES", "unit web-data", "logs"]),
        (["usage", "--fresh"], ["packages"]),
        (["quota"], ["web"]),
        (["health"], ["virtio", "unknown"]),
    ):
        result = runner.invoke(command.storage, arguments, standalone_mode=False)
        assert result.exception is None, result.exception
        assert all(word in result.output for word in words), result.output
        as_json = runner.invoke(command.storage, [*arguments, "--json"], standalone_mode=False)
        assert json.loads(as_json.output)
    result = runner.invoke(command.storage, ["quota", "set", "web", "1M"], standalone_mode=False)
    assert isinstance(result.exception, MixosError)
    assert result.exception.reason == "quota-unsupported"
    assert methods["storage.quota"].roles == ADMINS
    assert methods["storage.trim"].roles == OPERATORS


def test_start_status_stop(tmp_path):
    async def script() -> Any:
        part = Storage(place(tmp_path), tmp_path)
        put(part.quotas.path, '{"web": {"project": 1000, "limit": 4096}}')
        await part.start()
        status = dict(part.status())
        await part.stop()
        return status

    status = asyncio.run(script())
    assert status["quota-problems"] == {"web": "quota-unsupported"}
    assert 0 <= status["data-percent"] <= 100
