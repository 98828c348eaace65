"""The `mixos` command as its user meets it: a process, its output, its exit code. Nothing here builds anything."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click
import pytest

from buildsys.cli.main import VERBS, cli
from buildsys.run import CLEAN_ENV, CommandError, run
from common.disk import gpt
from tests.hostpackages import ROOT
from tests.images import ROOT as ROOT_FILE
from tests.images import Bench

pytestmark = pytest.mark.integration
MIXOS = Path(sys.executable).with_name("mixos")


@dataclass(frozen=True)
class Done:
    """How a call ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The last line of the output as an object."""
        found: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return found


Mixos = Callable[..., Done]


@pytest.fixture
def mixos(tmp_path: Path) -> Mixos:
    """Calls `mixos` with an empty cache. Whatever a user does, there is never a traceback."""

    def call(*words: str | Path, cwd: Path = ROOT) -> Done:
        environment = {"MIXOS_CACHE": str(tmp_path / "cache"), "PATH": f"{MIXOS.parent}:{CLEAN_ENV['PATH']}"}
        done = run([MIXOS, *words], cwd=cwd, env=environment, allow=range(256), split=True, timeout=300)
        result = Done(done.status, done.stdout.decode(), done.stderr.decode())
        assert "Traceback" not in result.out + result.err
        return result

    return call


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., Path]:
    """Writes a copy of mixos.toml with replacements (old, new)."""

    def write(*changes: tuple[str, str]) -> Path:
        text = (ROOT / "mixos.toml").read_text()
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "other.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    """What is enough of a kernel tree to plan with: planning reads the version and compiles nothing."""
    tree = tmp_path / "linux"
    tree.mkdir()
    (tree / "Makefile").write_text("VERSION = 6\nPATCHLEVEL = 6\nSUBLEVEL = 9\n")
    (tree / "Kconfig").write_text("")
    return tree


def commands(group: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command below `group`, as words."""
    yield words
    if isinstance(group, click.Group):
        context = click.Context(group)
        for name in group.list_commands(context):
            found = group.get_command(context, name)
            assert found is not None
            yield from commands(found, (*words, name))


@pytest.mark.parametrize("words", list(commands(cli)), ids=" ".join)
def test_help_of_every_command_shows_an_example(mixos: Mixos, words: tuple[str, ...]) -> None:
    done = mixos(*words, "--help")
    assert done.status == 0
    assert re.search(r"Example:\s+\S*\s*mixos", done.out.replace("\n", " ")) or 'eval "$(mixos' in done.out


def test_every_verb_is_listed_with_what_it_does(mixos: Mixos) -> None:
    text = mixos("-h").out
    for verb in VERBS:
        assert re.search(rf"^  {verb} +\S", text, re.MULTILINE), verb


@pytest.mark.parametrize(("typed", "meant"), [("buld", "build"), ("dokter", "doctor"), ("flush", "flash")])
def test_misspelt_verb(mixos: Mixos, typed: str, meant: str) -> None:
    done = mixos(typed)
    assert done.status == 2
    assert f"'{meant}'" in done.err


@pytest.mark.parametrize(
    "words",
    [("frobnicate",), ("build", "--no-such-option"), ("flash",), ("run", "--memory", "many"), ("run", "--cpus", "0")],
)
def test_wrong_command_lines(mixos: Mixos, words: tuple[str, ...]) -> None:
    done = mixos(*words)
    assert done.status == 2
    assert done.err


@pytest.mark.parametrize(
    ("old", "new", "reason", "named"),
    [
        ('arch = "x86_64"', 'arhc = "x86_64"', "config-unknown-key", "arch"),
        ("[partitions]", "[partition]", "config-unknown-key", "partitions"),
        ('root = "256M"', 'root = "256 elephants"', "config-value", "256 elephants"),
        ('arch = "x86_64"', 'arch = "z80"', "config-value", "z80"),
        ("[machine]", "[machine", "config-syntax", ""),
    ],
)
def test_mistake_in_the_configuration(
    mixos: Mixos, config: Callable[..., Path], old: str, new: str, reason: str, named: str
) -> None:
    path = config((old, new))
    text = path.read_text()
    line = text[: text.index(new)].count("\n") + 1
    done = mixos("--config", path, "plan", "--json")
    assert done.status == done.json["exit_code"] == 3
    assert done.json["reason"] == reason
    assert named in done.json["error"]
    assert re.match(rf"{re.escape(str(path))}:{line}:\d+: ", done.json["error"])


def test_misspelt_key_that_is_needed(mixos: Mixos, config: Callable[..., Path]) -> None:
    """Two findings, the key that is not known and the one that is missing; each with its place."""
    path = config(("version =", "versoin ="))
    line = path.read_text().split("versoin")[0].count("\n") + 1
    done = mixos("--config", path, "plan", "--json")
    assert done.status == 3
    assert f"{path}:{line}:1: " in done.json["error"]
    assert done.json["error"].count(f"{path}:") == 2


# case: B21
def test_mistake_in_the_settings_of_the_device(mixos: Mixos, config: Callable[..., Path], kernel: Path) -> None:
    path = config(('hostname = "mixos"', 'hostnam = "mixos"'))
    done = mixos("--config", path, "plan", "--kernel-source", kernel, "--json")
    assert done.status == 3
    assert done.json["reason"] == "settings-unknown-key"
    line = (
        path.read_text().splitlines().index(next(text for text in path.read_text().splitlines() if "hostnam " in text))
    )
    assert f"{path}:{line + 1}:" in done.json["error"]


# case: B21
def test_an_image_without_what_it_needs_is_not_planned(mixos: Mixos, config: Callable[..., Path], kernel: Path) -> None:
    text = (ROOT / "mixos.toml").read_text()
    (whole,) = re.findall(r"^install = .*$", text, re.MULTILINE)
    for install, named in (("install = []", "busybox"), (whole.replace('"openssh", ', ""), "openssh")):
        path = config((whole, install))
        done = mixos("--config", path, "plan", "--kernel-source", kernel, "--json")
        assert (done.status, done.json["reason"]) == (3, "package-missing")
        assert f"{path}:" in done.json["error"]
        assert named in done.json["error"]


# case: B11
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('esp = "260M"', 'esp = "128M"'),
        ('root = "256M" ', 'root = "100G" '),
        ('root = "256M" ', 'root = "8M" '),
        ('data = "64M"', 'data = "2097152M"'),
        ("[packages]", 'cmdline = ["x=é"]\n[packages]'),
        ('install = ["busybox", ', "install = ["),
    ],
)
def test_limits_of_an_image_are_known_when_it_is_planned(
    mixos: Mixos, config: Callable[..., Path], kernel: Path, old: str, new: str
) -> None:
    path = config((old, new))
    done = mixos("--config", path, "plan", "--kernel-source", kernel, "--json")
    assert done.status == 3
    assert re.search(rf"{re.escape(str(path))}:\d+:\d+", done.json["error"])


# case: B18
def test_a_day_of_toml_in_the_settings_of_an_image(mixos: Mixos, config: Callable[..., Path], kernel: Path) -> None:
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI" + "A" * 43
    rows = f'[[settings.ssh.keys]]\nkey = "{key}"\nexpires = 2027-01-01\n# [[settings.ssh.keys]]'
    path = config(("# [[settings.ssh.keys]]", rows))
    assert mixos("--config", path, "plan", "--kernel-source", kernel, "--json").status == 0


def test_outside_a_checkout(mixos: Mixos, tmp_path: Path) -> None:
    done = mixos("plan", "--json", cwd=tmp_path)
    assert done.status == 3
    assert done.json["reason"] == "config-missing"


def test_plan_lists_every_step_in_order(mixos: Mixos, kernel: Path, tmp_path: Path) -> None:
    done = mixos("plan", "--kernel-source", kernel, "--json")
    assert done.status == 0
    names = [row["action"] for row in done.json["actions"]]
    assert names[-1] == "disk"
    assert len(names) == len(set(names))
    for first, then in (
        ("kernel-config", "kernel"),
        ("recipe-musl", "rootfs"),
        ("rootfs", "verity"),
        ("verity", "uki"),
    ):
        assert names.index(first) < names.index(then)
    for row in done.json["actions"]:
        for source in row["inputs"].values():
            assert ":" in source or names.index(source) < names.index(row["action"])
        assert row["last_seconds"] is None
    assert not any((tmp_path / "cache" / "store" / "trees").iterdir())


def test_plan_of_one_target_is_a_part_of_the_whole(mixos: Mixos, kernel: Path) -> None:
    done = mixos("plan", "kernel", "--kernel-source", kernel, "--json")
    assert [row["action"] for row in done.json["actions"]] == ["kernel-config", "kernel"]


@pytest.mark.parametrize(("days", "status"), [(60, 0), (10, 0), (-1, 9)])
def test_the_end_of_waivers_is_told_before_it_comes(
    mixos: Mixos, kernel: Path, tmp_path: Path, days: int, status: int
) -> None:
    copy = tmp_path / "checkout"
    copy.mkdir()
    for name in ("common", "daemon", "image", "packages", "rootfs", "sources.lock", "mixos.toml"):
        (copy / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "kernel", copy / "kernel")
    waivers = copy / "kernel/waivers.toml"
    day = datetime.now(UTC).date() + timedelta(days=days)
    waivers.write_text(re.sub(r"(?m)^expires = .*$", f"expires = {day}", waivers.read_text()))
    done = mixos("-C", copy, "plan", "--kernel-source", kernel)
    assert done.status == status
    assert ("WARNING: waivers end soon" in done.err) == (days == 10)
    assert (str(day) in done.err) == (days != 60)
    assert ("RETPOLINE" in done.err) == (days != 60)


def test_plan_for_graphviz(mixos: Mixos, kernel: Path) -> None:
    done = mixos("plan", "--dot", "--kernel-source", kernel)
    assert done.status == 0
    assert done.out.startswith("digraph ")
    assert '"uki" -> "disk";' in done.out


def test_why_with_an_empty_cache(mixos: Mixos, kernel: Path) -> None:
    done = mixos("why", "--kernel-source", kernel, "--json")
    assert done.status == 0
    reasons = done.json["rebuild"]
    assert done.json["target"] == "disk"
    assert {"kernel-config", "kernel", "rootfs", "disk"} <= set(reasons)
    assert all(lines for lines in reasons.values())


@pytest.mark.parametrize("verb", ["plan", "why", "build"])
def test_unknown_target(mixos: Mixos, kernel: Path, verb: str) -> None:
    done = mixos(verb, "kernle", "--kernel-source", kernel, "--json")
    assert done.status == 2
    assert done.json["reason"] == "target-unknown"


@pytest.mark.parametrize("verb", ["plan", "build"])
def test_kernel_source_that_is_none(mixos: Mixos, tmp_path: Path, verb: str) -> None:
    done = mixos(verb, "--kernel-source", tmp_path / "nothing", "--json")
    assert done.status == 3
    assert done.json["reason"] == "kernel-source"


def test_pinned_kernel_offline_with_an_empty_cache(mixos: Mixos) -> None:
    done = mixos("build", "kernel-config", "--kernel-source", "pinned", "--offline", "--json")
    assert done.status == 4
    assert done.json["reason"] == "fetch-offline"


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout without results."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "mixos.toml").write_bytes((ROOT / "mixos.toml").read_bytes())
    return root


def test_run_without_an_image(mixos: Mixos, bare: Path) -> None:
    done = mixos("-C", bare, "run", "--detach", "--json")
    assert done.status == done.json["exit_code"] == 8
    assert done.json["reason"] == "image-missing"
    assert "make image" in done.json["hint"]
    assert not (bare / "out").exists()


READ_ONLY = 'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && cd "$1" && shift && exec "$@"'


@pytest.mark.parametrize("named", ["option", "variable", "nothing"])
def test_a_checkout_that_can_only_be_read(kernel: Path, tmp_path: Path, named: str) -> None:
    def call(*words: str | Path) -> Done:
        unshared = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", ROOT]
        first = ["--out", out] if named == "option" else []
        variable = {"MIXOS_OUT": str(out)} if named == "variable" else {}
        environment = {
            "MIXOS_CACHE": str(tmp_path / "cache"),
            "PATH": f"{MIXOS.parent}:{CLEAN_ENV['PATH']}",
            **variable,
        }
        done = run([*unshared, MIXOS, *first, *words], env=environment, allow=range(256), split=True, timeout=300)
        return Done(done.status, done.stdout.decode(), done.stderr.decode())

    out = tmp_path / "results"
    done = call("build", "no-such-target", "--kernel-source", kernel, "--json")
    if named == "nothing":
        assert (done.status, done.json["reason"]) == (6, "host-io")
        assert "--out" in done.json["hint"]
        return
    assert (done.status, done.json["reason"]) == (2, "target-unknown")
    assert (out / "build.log").is_file()
    done = call("run", "--detach", "--json")
    assert done.json["reason"] == "image-missing"
    assert str(out) in done.json["error"]
    image = Bench(tmp_path / "image", ROOT_FILE).image()
    done = call("flash", image, out / "disk", "--file", "--yes", "--json")
    assert (done.status, done.json["verified"]) == (0, True)


def test_an_out_folder_without_a_name_and_sectors_of_a_disk(mixos: Mixos, tmp_path: Path) -> None:
    for words in (["--out", "", "stop"], ["flash", "x", tmp_path, "--sector-size", "4096"]):
        done = mixos(*words, "--json")
        assert (done.status, done.json["reason"]) == (2, "usage")


def test_flash_for_sectors_that_the_boot_partition_is_too_small_for(mixos: Mixos, image: Path, tmp_path: Path) -> None:
    words = ("flash", image, tmp_path / "disk", "--file", "--sector-size", "4096", "--yes", "--json")
    done = mixos(*words)
    assert (done.status, done.json["reason"]) == (8, "esp-too-small")
    assert not (tmp_path / "disk").exists()


@pytest.mark.parametrize("words", [("stop",), ("ssh", "--", "true")])
def test_no_machine_is_running(mixos: Mixos, bare: Path, words: tuple[str, ...]) -> None:
    assert mixos("-C", bare, *words).status == 2


def test_options_of_run_that_exclude_each_other(mixos: Mixos, bare: Path) -> None:
    done = mixos("-C", bare, "run", "--detach", "--serial", "--json")
    assert done.status == 2
    assert done.json["reason"] == "run-options"
    assert mixos("-C", bare, "run", "--disk-size", "2 GiB", "--json").json["reason"] == "size-invalid"


def test_doctor(mixos: Mixos) -> None:
    done = mixos("doctor", "--json")
    assert done.status in (0, 6)
    findings = json.loads(done.out.splitlines()[0])["findings"]
    assert {"python", "host programs", "build isolation", "disk"} <= {row["check"] for row in findings}
    assert all(row["ok"] or row["remedy"] for row in findings)
    assert (done.status == 0) == all(row["ok"] for row in findings if row["needed"])


def test_doctor_names_packages_only(mixos: Mixos) -> None:
    done = mixos("doctor", "--packages")
    assert done.status == 0
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", line) for line in done.out.split())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(mixos: Mixos, shell: str) -> None:
    done = mixos("completion", shell)
    assert done.status == 0
    assert "_MIXOS_COMPLETE" in done.out
    if shell == "bash":
        run(["bash", "-n"], stdin=done.out.encode())


def test_completion_of_an_unknown_shell(mixos: Mixos) -> None:
    assert mixos("completion", "tcsh").status == 2


def test_a_verb_completes(tmp_path: Path) -> None:
    environment = {"_MIXOS_COMPLETE": "bash_complete", "COMP_WORDS": "mixos fl", "COMP_CWORD": "1"}
    done = run([MIXOS], env={**environment, "MIXOS_CACHE": str(tmp_path)}, cwd=ROOT)
    assert done.text == "plain,flash"


def completed(*words: str | Path, env: dict[str, str]) -> list[str]:
    """What bash is offered for the last of the words."""
    line = {
        "_MIXOS_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(map(str, words)),
        "COMP_CWORD": f"{len(words) - 1}",
    }
    done = run([MIXOS], env={**env, **line}, cwd="/", split=True)
    assert done.stderr == b""
    return [one.removeprefix("plain,") for one in done.text.split()]


def test_names_of_keys_complete(tmp_path: Path) -> None:
    env = {"MIXOS_KEYS": str(tmp_path / "private"), "MIXOS_CACHE": str(tmp_path)}
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(ROOT / "mixos.toml", project)
    assert completed("mixos", "-C", project, "keys", "rotate", "r", env=env) == []
    run([MIXOS, "-C", project, "keys", "make", "--no-passphrase"], env=env)
    offered = completed("mixos", "-C", project, "keys", "rotate", "r", env=env)
    assert offered == ["root-1", "root-2", "root-3"]
    assert completed("mixos", "-C", project, "keys", "rotate", "d", env=env) == ["db"]
    assert completed("mixos", "-C", project, "keys", "revoke", "s", env=env) == ["snapshot-1"]
    assert "openpgp" in completed("mixos", "-C", project, "keys", "revoke", "o", env=env)
    (project / "keys" / "tuf" / "1.root.json").write_text("{")
    assert completed("mixos", "-C", project, "keys", "revoke", "r", env=env) == []


def test_cache_of_a_new_user(mixos: Mixos) -> None:
    assert mixos("cache", "ls", "--json").json == {"results": []}
    assert mixos("cache", "verify", "--json").json["damaged"] == {}
    assert mixos("cache", "gc", "--json").json == {"freed": 0}
    assert mixos("cache", "gc", "--max-size", "lots", "--json").json["reason"] == "size-invalid"


def test_lock_lists_the_sources(mixos: Mixos) -> None:
    rows = mixos("lock", "--json").json["sources"]
    assert {"linux", "busybox", "musl"} <= {row["name"] for row in rows}
    assert all(re.fullmatch(r"[0-9a-f]{64}", row["sha256"]) and not row["local"] for row in rows)


# -- flash -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small image of the right format."""
    return Bench(tmp_path_factory.mktemp("flash"), ROOT_FILE).image()


@pytest.fixture
def loop(tmp_path: Path, image: Path) -> Iterator[Path]:
    """A loop device with room for the image."""
    if os.geteuid() != 0:
        pytest.skip("loop devices need root")
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(image.stat().st_size + (16 << 20))
    try:
        device = Path(run(["losetup", "--find", "--show", backing]).text)
    except CommandError:
        pytest.skip("this host gives no loop device")
    yield device
    run(["losetup", "--detach", device])


def test_flash_asks_first(mixos: Mixos, image: Path, loop: Path) -> None:
    done = mixos("flash", image, loop, "--json")  # nobody is at the keyboard to say yes
    assert done.status == 2
    assert done.json["reason"] == "not-confirmed"
    with loop.open("rb") as stream:
        assert not stream.read(1 << 20).strip(b"\0")


def test_flash_refuses_a_mounted_disk(mixos: Mixos, image: Path, loop: Path, tmp_path: Path) -> None:
    run(["mkfs.ext4", "-q", loop])
    (tmp_path / "mnt").mkdir()
    try:
        run(["mount", loop, tmp_path / "mnt"])
    except CommandError:
        pytest.skip("this host's kernel mounts no ext4 file system")
    try:
        done = mixos("flash", image, loop, "--yes", "--json")
    finally:
        run(["umount", tmp_path / "mnt"])
    assert done.status == 8
    assert done.json["reason"] == "device-in-use"
    assert str(tmp_path / "mnt") in done.json["error"]


def test_flash_refuses_a_small_disk(mixos: Mixos, image: Path, loop: Path, tmp_path: Path) -> None:
    run(["losetup", "--detach", loop])
    os.truncate(tmp_path / "backing", 32 << 20)
    run(["losetup", loop, tmp_path / "backing"])
    done = mixos("flash", image, loop, "--yes", "--json")
    assert done.status == 8
    assert done.json["reason"] == "disk-too-small"


def test_flash_writes_and_says_so(mixos: Mixos, image: Path, loop: Path) -> None:
    done = mixos("flash", image, loop, "--yes", "--json")
    assert done.status == 0
    assert done.json["verified"] is True
    assert len(done.json["warnings"]) == 1  # the image has no SSH key
    assert gpt.read(loop).partitions == gpt.read(image).partitions


@pytest.mark.parametrize(
    ("target", "reason"), [("missing", "no-device"), ("plain", "not-a-block-device"), ("folder", "not-a-block-device")]
)
def test_flash_onto_what_is_no_disk(mixos: Mixos, image: Path, tmp_path: Path, target: str, reason: str) -> None:
    (tmp_path / "plain").touch()
    (tmp_path / "folder").mkdir()
    done = mixos("flash", image, tmp_path / target, "--yes", "--json")
    assert done.status == 8
    assert done.json["reason"] == reason


def test_flash_what_is_no_image(mixos: Mixos, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"hello" * 100_000)
    done = mixos("flash", tmp_path / "text", tmp_path / "disk", "--file", "--yes", "--json")
    assert done.status == 8
    assert mixos("flash", tmp_path / "nothing", tmp_path / "disk", "--file", "--yes", "--json").status == 8


def test_flash_with_a_bad_preseed_writes_nothing(mixos: Mixos, image: Path, tmp_path: Path) -> None:
    (tmp_path / "preseed.toml").write_text('hostnam = "x"\n')
    words = ("flash", image, tmp_path / "disk", "--file", "--yes", "--preseed", tmp_path / "preseed.toml", "--json")
    done = mixos(*words)
    assert done.status == 3
    assert done.json["reason"] == "settings-unknown-key"
    assert not (tmp_path / "disk").exists()


# case: B14
def test_flash_from_standard_input(image: Path, tmp_path: Path) -> None:
    argv = [MIXOS, "flash", "-", tmp_path / "disk", "--file", "--json"]
    refused = run(argv, cwd=ROOT, stdin=image.read_bytes(), allow=range(256))
    assert json.loads(refused.stdout.splitlines()[-1])["reason"] == "not-confirmed"
    assert not (tmp_path / "disk").exists()
    run([*argv, "--yes"], cwd=ROOT, stdin=image.read_bytes())
    assert (tmp_path / "disk").read_bytes() == image.read_bytes()


# case: B5
@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_streams_that_were_closed(image: Path, tmp_path: Path, closed: str) -> None:
    """What is opened first would have their numbers: messages would be written into the disk."""
    disk = tmp_path / "disk"
    for words in (["flash", image, disk, "--file", "--yes"], ["plan", "--json"], ["fetch", "--offline", "--json"]):
        script = f'exec "$@" {closed}'
        environment = {"MIXOS_CACHE": str(tmp_path / "cache")}
        done = run(["sh", "-c", script, "sh", MIXOS, *words], cwd=ROOT, env=environment, allow=range(256), split=True)
        assert b"Traceback" not in done.stdout + done.stderr
        assert done.status == (0 if words[0] != "fetch" else 4)
    assert gpt.read(disk).partitions == gpt.read(image).partitions


# case: B19
def test_packages_of_others_with_our_names(tmp_path: Path) -> None:
    for name in ("common", "daemon", "image", "kernel", "packages", "rootfs"):
        (tmp_path / "path" / name).mkdir(parents=True)
        (tmp_path / "path" / name / "__init__.py").write_text("raise SystemExit('not this one')\n")
    environment = {"PYTHONPATH": str(tmp_path / "path"), "MIXOS_CACHE": str(tmp_path / "cache")}
    for words in (["plan", "--json"], ["daemon", "--help"], ["why", "--help"], ["doctor", "--json"]):
        done = run([MIXOS, *words], cwd=ROOT, env=environment, allow=range(256))
        assert b"not this one" not in done.stdout
        assert b"Traceback" not in done.stdout


# case: B19
@pytest.mark.parametrize("home", [None, "/dev/null/home"])  # nobody can write there, root included
def test_a_user_without_a_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str | None) -> None:
    monkeypatch.delenv("HOME")
    environment = {"MIXOS_CACHE": str(tmp_path / "cache"), **({"HOME": home} if home else {})}
    assert run([MIXOS, "plan", "--json"], cwd=ROOT, env=environment, split=True).status == 0


# case: B19
def test_a_home_of_nobody(mixos: Mixos) -> None:
    done = mixos("plan", "--kernel-source", "~no-such-user/linux", "--json")
    assert done.status == 3


# case: B19
def test_bootstrap_with_settings_of_a_shell_and_of_pip(tmp_path: Path) -> None:
    (tmp_path / "ci").mkdir()
    environment = {"CDPATH": str(tmp_path), "PIP_USER": "1"}
    run(["sh", "ci/bootstrap"], cwd=ROOT, env=environment, timeout=300)
