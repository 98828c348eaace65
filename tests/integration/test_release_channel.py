"""`mixos release` and `mixos channel` with real keys, images and Git, and devices that ask over HTTP."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from tuf.ngclient import Updater

from buildsys import bundle as making
from buildsys import channel as channels
from buildsys import release as gate
from buildsys.cli.bundle import bundle
from buildsys.cli.channel import channel
from buildsys.cli.context import Context
from buildsys.cli.keys import keys
from buildsys.cli.release import release
from buildsys.keys import secureboot
from buildsys.keys.private import Passphrase, Private
from buildsys.keys.public import Public
from buildsys.run import ANY_STATUS, run
from common.bundle import container, manifest, sealing
from common.errors import MixosError
from common.trust.channel import Checked, Device, check
from common.trust.metadata import Fetch
from common.trust.release import Anchors, Running, verify
from tests.hostpackages import ROOT
from tests.images import Bench

pytestmark = pytest.mark.integration
BASE = b"".join(bytes([at % 251, at % 241]) * 2048 for at in range(700))


class Shop:
    """A project in Git, with keys, builds (of made-up images) and a channel."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "project"
        self.base = folder
        self.served = folder / "served"
        self.keys = Public(self.folder / "keys")
        (self.folder).mkdir()
        monkeypatch.setenv("MIXOS_KEYS", str(folder / "private"))
        (self.folder / ".gitignore").write_text("out/\n")
        self.git("init", "-q")
        self.write_config("1.0.0", 1)
        self.ok(keys, "make", "--simple", "--no-passphrase")

    def git(self, *words: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return run(["git", "-C", str(self.folder), *who, *words]).text

    def invoke(self, command: click.Command, *words: str | Path) -> Any:
        context = Context(self.folder, None, None)
        return CliRunner().invoke(command, [*map(str, words), "--json"], obj=context)

    def ok(self, command: click.Command, *words: str | Path) -> dict[str, Any]:
        result = self.invoke(command, *words)
        assert result.exception is None, (result.exception, getattr(result.exception, "hint", ""))
        found: dict[str, Any] = json.loads(result.stdout)
        return found

    def refused(self, reason: str, command: click.Command, *words: str | Path) -> MixosError:
        error = self.invoke(command, *words).exception
        assert isinstance(error, MixosError), error
        assert error.reason == reason
        return error

    def write_config(self, version: str, sequence: int, floor: int = 0) -> None:
        text = (ROOT / "mixos.toml").read_text()
        text = text.replace('version = "0.1.0"', f'version = "{version}"\nsequence = {sequence}\nfloor = {floor}')
        (self.folder / "mixos.toml").write_text(text)

    def build(self, version: str, sequence: int, *, tag: bool = True, floor: int = 0, **changes: Any) -> Path:
        """Commit, tag and build: an image, and what a build says of it. changes: of the kernel."""
        self.write_config(version, sequence, floor)
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", version)
        if tag:
            self.git("tag", f"v{version}")
        words = version.encode().ljust(8192, b".")
        bench = Bench(self.base / f"build-{version}", BASE[: 1 << 20] + words + BASE[1 << 20 :], version=version)
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        image = out / f"mixos-{version}-x86_64.img"
        for name in ("verity", "uki", "disk"):
            bench.run(name)
        (bench.inputs["disk"] / image.name).rename(image)
        hashes = {name: run(["sha256sum", self.keys.device / name]).text.split()[0] for name in self.anchors()}
        kernel = {"requested": "6.6.8", "source": "linux-6.6.8", "fallback": False, "note": "", "waived": []} | changes
        record = {
            "kernel": kernel,
            "instead": {},
            "image": json.loads((bench.inputs["disk"] / "image.json").read_bytes()),
            "root": {
                "files": [
                    {"path": f"usr/lib/mixos/update/{name}", "type": "file", "sha256": digest}
                    for name, digest in hashes.items()
                ]
            },
            "revision": {"commit": self.git("rev-parse", "HEAD"), "changes": [], "clean": True},
        }
        (out / "manifest.json").write_text(json.dumps(record))
        return image

    def anchors(self) -> list[str]:
        return sorted(path.name for path in self.keys.device.iterdir())

    def change_record(self, change: Callable[[dict[str, Any]], None]) -> None:
        path = self.folder / "out" / "manifest.json"
        found = json.loads(path.read_bytes())
        change(found)
        path.write_text(json.dumps(found))

    def release(self, version: str, sequence: int, *words: str | Path) -> dict[str, Any]:
        self.build(version, sequence)
        return self.ok(release, "--channel", self.served, *words)


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    found = Shop(tmp_path, monkeypatch)
    yield found
    for home in tmp_path.rglob("openpgp"):
        run(["gpgconf", "--homedir", str(home), "--kill", "all"], allow=ANY_STATUS)


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def url(shop: Shop) -> Iterator[str]:
    shop.served.mkdir()
    handler = partial(Quiet, directory=str(shop.served))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def over_http(url: str) -> Fetch:
    def fetch(name: str, limit: int) -> bytes | None:
        try:
            with urllib.request.urlopen(url + name, timeout=10) as answer:
                return bytes(answer.read(limit + 1))
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise

    return fetch


class Box:
    """A device that runs a release of the shop."""

    def __init__(self, shop: Shop, url: str, version: str, sequence: int, root_hash: str, name: str = "0") -> None:
        self.anchors = Anchors.load(shop.keys.device)
        self.folder = shop.base / f"box-{name}"
        self.fetch = over_http(url)
        self.running = Running("x86_64", "default", sequence, 0)
        self.device = Device(self.running, root_hash, name)

    def check(self, days: float = 0.01) -> Checked:
        return check(self.fetch, self.anchors, self.folder, self.device, datetime.now(UTC) + timedelta(days=days))


def offered(found: Checked) -> str | None:
    return found.manifest.version if found.manifest else None


def test_from_a_build_to_a_device_that_is_offered_it(shop: Shop, url: str, tmp_path: Path):
    first = shop.release("1.0.0", 1)
    assert first["plans"] == [{"from": None, "transfer": first["plans"][0]["transfer"]}]
    old = channels.Channel(shop.served).bundles()[shop.served / "mixos-1.0.0.mixb"]
    second = shop.release("1.1.0", 2)
    assert [one["from"] for one in second["plans"]] == [None, "1.0.0"]
    box = Box(shop, url, "1.0.0", 1, old.root.root_hash)
    found = box.check()
    assert (offered(found), found.whole) == ("1.1.0", False)
    assert found.transfer == second["plans"][1]["transfer"] < second["plans"][0]["transfer"]
    other = Box(shop, url, "0.9.0", 0, "00" * 32, name="other").check()
    assert (offered(other), other.whole) == ("1.1.0", True)

    # the bundle itself, as it is fetched, is one that the device takes after that
    assert found.bundle is not None
    with urllib.request.urlopen(url + found.bundle, timeout=10) as answer:
        front, _ = container.read(answer.read)
    taken = verify(front, box.anchors, box.folder, box.running, datetime.now(UTC) + timedelta(days=0.01))
    assert taken.manifest == found.manifest

    # and a client that we did not write agrees about every file
    (tmp_path / "tuf").mkdir()
    updater = Updater(
        metadata_dir=str(tmp_path / "tuf"),
        metadata_base_url=url,
        target_dir=str(tmp_path / "tuf"),
        target_base_url=url,
        bootstrap=box.anchors.root,
    )
    target = updater.get_targetinfo("release/1.1.0.json")
    assert target is not None
    assert Path(updater.download_target(target)).read_text() == front.manifest


def test_waves_pause_and_withdrawal(shop: Shop, url: str):
    shop.release("1.0.0", 1)
    shop.release("1.1.0", 2, "--wave", "0%", "--wave", "100%@+2d", "--max-failures", "2%")
    box = Box(shop, url, "0.9.0", 0, "00" * 32)
    found = box.check()
    assert offered(found) == "1.0.0"
    assert found.why is not None
    assert found.why.why == "wave"
    assert offered(box.check(days=2.1)) == "1.1.0"

    assert shop.ok(channel, "wave", shop.served, "1.1.0", "100%")["changed"] == ["1.1.0"]
    assert offered(box.check()) == "1.1.0"
    for words, changed in ((("--failed", "2", "--of", "100"), []), (("--failed", "3", "--of", "100"), ["1.1.0"])):
        assert shop.ok(channel, "pause", shop.served, "1.1.0", "--why", "ticket 12", *words)["changed"] == changed
    found = box.check()
    assert offered(found) == "1.0.0"
    assert found.why is not None
    assert (found.why.why, found.why.text) == ("paused", "it is paused: ticket 12")
    rows = {row["version"]: row for row in shop.ok(channel, "status", shop.served)["releases"]}
    assert (rows["1.1.0"]["paused"], rows["1.1.0"]["share"], rows["1.0.0"]["share"]) == ("ticket 12", 0, 10_000)
    assert shop.ok(channel, "pause", shop.served)["changed"] == ["1.0.0", "1.1.0"]
    assert offered(box.check()) is None
    assert shop.ok(channel, "resume", shop.served)["changed"] == ["1.0.0", "1.1.0"]
    assert offered(box.check()) == "1.1.0"

    front = container.read((shop.served / "mixos-1.1.0.mixb").open("rb").read)[0]
    shop.ok(channel, "withdraw", shop.served, "1.1.0")
    assert offered(box.check()) == "1.0.0"
    with pytest.raises(MixosError) as caught:
        verify(front, box.anchors, box.folder, box.running, datetime.now(UTC) + timedelta(days=0.01))
    assert caught.value.reason == "release-unlisted"
    shop.refused("keys-unknown", channel, "withdraw", shop.served, "1.1.0")
    shop.refused("channel-unknown", channel, "pause", shop.served, "1.1.0")
    third = shop.release("1.2.0", 3)
    assert {one["from"] for one in third["plans"]} == {None, "1.0.0", "1.1.0"}  # devices run what was withdrawn


def test_the_clock_of_a_device_is_wrong(shop: Shop, url: str):
    shop.release("1.0.0", 1)
    box = Box(shop, url, "0.9.0", 0, "00" * 32)
    with pytest.raises(MixosError) as caught:
        box.check(days=91)
    assert caught.value.reason == "release-freeze"
    found = box.check(days=-400)
    assert found.why is not None
    assert found.why.why == "clock"
    assert offered(box.check()) == "1.0.0"


def test_a_channel_is_renewed(shop: Shop, url: str):
    shop.release("1.0.0", 1)
    shop.ok(keys, "renew")
    assert not shop.ok(channel, "status", shop.served)["current"]
    assert shop.ok(channel, "publish", shop.served)["written"] == ["timestamp.json"]
    assert shop.ok(channel, "publish", shop.served)["written"] == []
    shop.ok(keys, "rotate", "targets-1", "--no-passphrase")
    shop.ok(channel, "publish", shop.served)
    assert offered(Box(shop, url, "0.9.0", 0, "00" * 32).check()) == "1.0.0"


def test_who_asks_while_files_are_written_sees_the_old_or_the_new(shop: Shop, url: str, monkeypatch):
    """The channel is cut off after each write; a new device and one that knows the old state ask."""
    shop.release("1.0.0", 1)
    shop.build("1.1.0", 2)
    old = Box(shop, url, "0.9.0", 0, "00" * 32)
    assert offered(old.check()) == "1.0.0"
    seen: list[str | None] = []
    write = channels.atomic_write

    def spying(path: Path, data: bytes) -> None:
        write(path, data)
        for box in (old, Box(shop, url, "0.9.0", 0, "00" * 32, name=f"new-{len(seen)}")):
            seen.append(offered(box.check()))

    monkeypatch.setattr(channels, "atomic_write", spying)
    shop.ok(release, "--channel", shop.served)
    assert len(seen) >= 8
    first = seen.index("1.1.0")
    assert set(seen[:first]) == {"1.0.0"}
    assert set(seen[first:]) == {"1.1.0"}


def test_a_release_that_was_cut_off_goes_on(shop: Shop, url: str, monkeypatch):
    """After the list was signed, before the bundle was there."""
    shop.build("1.0.0", 1)
    monkeypatch.setattr("buildsys.bundle.atomic_write", lambda path, data: (_ for _ in ()).throw(OSError(28, "full")))
    assert isinstance(shop.invoke(release, "--channel", shop.served).exception, OSError)
    assert "release/1.0.0.json" in shop.keys.listed()
    monkeypatch.undo()
    monkeypatch.setenv("MIXOS_KEYS", str(shop.base / "private"))
    shop.refused("channel-incomplete", channel, "publish", shop.served)
    assert not (shop.served / "timestamp.json").exists()
    shop.ok(release, "--channel", shop.served)
    assert offered(Box(shop, url, "0.9.0", 0, "00" * 32).check()) == "1.0.0"


def test_keys_that_are_elsewhere_sign_there_and_the_same_command_goes_on(shop: Shop, url: str, monkeypatch):
    shop.build("1.0.0", 1)
    away = shop.base / "away"
    shop.ok(keys, "export", "targets-1", "--move", "--to", away)
    words = (release, "--channel", shop.served, "--wave", "100%@+0h")
    shop.refused("keys-pending", *words)
    (waiting,) = shop.keys.pending.glob("*.targets.json")
    before = waiting.read_bytes()
    shop.refused("keys-pending", *words)
    assert waiting.read_bytes() == before  # what was taken along to be signed is what is waited for
    monkeypatch.setenv("MIXOS_KEYS", str(away))
    shop.ok(keys, "sign", waiting)
    monkeypatch.setenv("MIXOS_KEYS", str(shop.base / "private"))
    shop.ok(*words)
    assert not list(shop.keys.pending.iterdir())
    box = Box(shop, url, "0.9.0", 0, "00" * 32)
    assert offered(box.check()) == "1.0.0"
    shop.refused("keys-pending", channel, "withdraw", shop.served, "1.0.0")
    assert offered(box.check()) == "1.0.0"
    monkeypatch.setenv("MIXOS_KEYS", str(away))
    shop.ok(keys, "sign", next(iter(shop.keys.pending.glob("*.targets.json"))))
    monkeypatch.setenv("MIXOS_KEYS", str(shop.base / "private"))
    shop.ok(channel, "withdraw", shop.served, "1.0.0")
    assert offered(box.check()) is None


def test_a_bundle_that_was_made_before_is_released(shop: Shop, url: str):
    shop.release("1.0.0", 1)
    image = shop.build("1.1.0", 2)
    made = Path(shop.ok(bundle, image, "--from", shop.served / "mixos-1.0.0.mixb")["bundle"])
    box = Box(shop, url, "0.9.0", 0, "00" * 32)
    shop.ok(channel, "publish", shop.served)
    assert offered(box.check()) == "1.0.0"  # listed, not offered
    content = making.load(image)
    certificate = secureboot.read(shop.keys, "db.pem")
    private = Private(shop.base / "private", Passphrase(none=True))
    kept = image.with_suffix(".efi")  # what releasing the image would have signed; the bundle does not have it
    gate.signed(content, certificate, lambda: secureboot.load_one(private, shop.keys, "db"), kept)
    shop.refused("release-unsigned", release, made, "--channel", shop.served)
    shop.ok(release, made, "--channel", shop.served, "--no-secure-boot")
    assert offered(box.check()) == "1.1.0"
    assert (shop.served / "mixos-1.1.0.mixb").read_bytes() == made.read_bytes()


def test_a_release_that_named_devices_alone_can_read(shop: Shop, url: str):
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    devices = shop.base / "devices.txt"
    devices.write_text(f"{sealing.write_public(public)} kitchen\n{sealing.write_public(bytes(range(32)))}\n")
    image = shop.build("1.0.0", 1)
    shop.ok(release, image, "--channel", shop.served, "--encrypt-to", devices)
    path = shop.served / "mixos-1.0.0.mixb"
    with path.open("rb") as stream:
        front, start = container.read(stream.read)
    found = manifest.parse(front.manifest)
    key = sealing.unseal(front.recipients[sealing.name(public)], private.private_bytes_raw())
    assert key is not None
    reader = sealing.Reader(key, start, lambda offset, length: path.read_bytes()[offset : offset + length])
    for blob in (found.plans[0].root, found.plans[0].uki):
        assert hashlib.sha256(reader.read(blob.offset, blob.size)).hexdigest() == blob.sha256
    box = Box(shop, url, "0.9.0", 0, "00" * 32)
    assert offered(box.check()) == "1.0.0"
    shop.build("1.1.0", 2)
    shop.refused("release-plain", release, "--channel", shop.served)
    shop.ok(release, "--channel", shop.served, "--plain", "--check")
    made = shop.ok(release, "--channel", shop.served, "--encrypt-to", sealing.write_public(public))
    assert [one["from"] for one in made["plans"]] == [None, "1.0.0"]  # who made a bundle reads it again
    shop.refused("bundle-made", release, path, "--channel", shop.served, "--encrypt-to", devices)
    shop.refused("device-key", bundle, image, "--encrypt-to", "mixos-device:AAAA")
    stick = shop.base / "stick"
    assert "payload" in {one["name"] for one in shop.ok(keys, "list")["keys"]}
    shop.ok(keys, "export", "payload", "--move", "--to", stick)
    assert (stick / "bundle/payload.key").exists()
    shop.refused("keys-missing", bundle, image, "--from", path)
    shop.build("1.2.0", 3)
    words = "--channel", shop.served, "--encrypt-to", devices
    assert "--deltas 0" in (shop.refused("keys-missing", release, *words).hint or "")
    made = shop.ok(release, *words, "--deltas", "0")
    assert [one["from"] for one in made["plans"]] == [None]


def test_hooks_are_told(shop: Shop, tmp_path: Path):
    program = tmp_path / "check"
    program.write_bytes(b"#!/bin/sh\n")
    said = {"when": "before-stage", "seconds": 5, "size": 10, "sha256": hashlib.sha256(b"#!/bin/sh\n").hexdigest()}
    image = shop.build("1.0.0", 1)
    made = shop.ok(bundle, image, "--hook", f"before-stage:5={program}")
    assert made["hooks"] == [said]
    assert shop.ok(release, made["bundle"], "--channel", shop.served, "--no-secure-boot")["hooks"] == [said]
    assert shop.release("1.1.0", 2)["hooks"] == []


def test_the_kernel_image_of_a_release_is_signed_once(shop: Shop):
    shop.release("1.0.0", 1)
    first = channels.Channel(shop.served).bundles()
    shop.ok(release, "--channel", shop.served)
    assert channels.Channel(shop.served).bundles() == first


# -- refusals ----------------------------------------------------------------------------------------------------------


def test_each_refusal_has_its_reason_and_a_hint(shop: Shop):
    """One after the other over the same build; nothing is signed or served by any of them."""
    shop.release("1.0.0", 5)
    before = {path: path.read_bytes() for path in shop.served.rglob("*") if path.is_file()}
    words = (release, "--channel", shop.served)
    image = shop.build("1.1.0", 6)
    record = (shop.folder / "out" / "manifest.json").read_bytes()

    def refused(reason: str, *more: str | Path) -> None:
        error = shop.refused(reason, *words, *more)
        assert error.hint

    ended = {"symbol": "A", "expires": "2020-01-31", "reason": "why"}
    for reason, change in (
        ("release-kernel", lambda found: found["kernel"].update(fallback=True, note="another one")),
        ("release-kernel", lambda found: found["kernel"].update(requested="path")),
        ("release-source", lambda found: found.update(instead={"a": "b.tar"})),
        ("release-waiver", lambda found: found["kernel"].update(waived=[ended])),
        ("release-content", lambda found: found["image"].update(root_hash="00" * 32)),
        ("release-manifest", lambda found: found.pop("revision")),
        ("release-tree", lambda found: found["revision"].update(changes=["x.c"])),
        ("release-tree", lambda found: found["revision"].update(commit=None)),
        ("release-tree", lambda found: found["revision"].update(commit="0" * 40)),
        ("release-anchors", lambda found: found["root"].update(files=[])),
    ):
        shop.change_record(change)
        refused(reason)
        (shop.folder / "out" / "manifest.json").write_bytes(record)
    (shop.folder / "new.txt").write_text("x")
    refused("release-tree")
    (shop.folder / "new.txt").unlink()
    shop.git("tag", "-d", "v1.1.0")
    refused("release-tag")
    shop.git("tag", "1.1.0")
    shop.ok(*words, "--check")
    shop.build("0.9.0", 4)
    refused("release-sequence")
    refused("release-content", image)
    shop.build("1.2.0", 7, floor=8)
    refused("release-sequence")
    assert before == {path: path.read_bytes() for path in shop.served.rglob("*") if path.is_file()}


def test_several_things_that_speak_against_a_release_are_told_at_once(shop: Shop):
    shop.build("1.0.0", 1, tag=False, fallback=True, note="another")
    error = shop.refused("release-kernel", release, "--channel", shop.served)
    assert "v1.0.0" in error.message


def test_a_channel_of_others(shop: Shop):
    shop.release("1.0.0", 1)
    tuf = {path: path.read_bytes() for path in shop.keys.tuf.rglob("*") if path.is_file()}
    shop.ok(keys, "renew")
    shop.ok(channel, "publish", shop.served)
    (shop.keys.tuf / "timestamp.json").write_bytes(tuf[shop.keys.tuf / "timestamp.json"])  # a checkout of before
    shop.refused("channel-newer", channel, "publish", shop.served)
    shop.refused("channel-newer", release, "--channel", shop.served)
    (shop.served / "1.root.json").write_text("{}")
    shop.refused("channel-other", channel, "status", shop.served)


def test_a_folder_that_is_no_channel(shop: Shop):
    """A name that was mistyped: nothing is signed, or made."""
    shop.release("1.0.0", 1)
    empty = shop.base / "empty"
    empty.mkdir()
    before = sorted(shop.base.rglob("*"))
    for words in (("status",), ("pause",), ("wave", "1.0.0", "5%"), ("withdraw", "1.0.0"), ("publish",)):
        for folder in (shop.base / "nothing", shop.folder / "mixos.toml", *([empty] if words[0] != "publish" else [])):
            shop.refused("channel-none", channel, words[0], folder, *words[1:])
    assert sorted(shop.base.rglob("*")) == before


def test_without_keys(shop: Shop):
    shop.build("1.0.0", 1)
    for path in shop.keys.device.iterdir():
        path.unlink()
    shop.refused("keys-none", release, "--channel", shop.served)
