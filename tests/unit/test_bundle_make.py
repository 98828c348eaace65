"""Bundles of images: what is in them, ways from earlier releases, and that what they make is the image."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from buildsys import bundle
from buildsys.bundle import Facts
from common.bundle import container, manifest, sealing, windows
from common.bundle.container import Front
from common.disk import gpt
from common.errors import ImageError, UsageError
from tests.images import Bench

FACTS = Facts(sequence=7, minimum=3, machine="x86_64", variant="default", created=1_700_000_000)


def image(base: Path, version: str, words: bytes) -> Path:
    """An image of a root of some MiB, of which `words` are a part."""
    noise = b"".join(bytes([at % 251, at % 241]) * 2048 for at in range(700))
    root = noise[: 1 << 20] + words.ljust(8192, b".") + noise[1 << 20 :]
    bench = Bench(base / version, root[: len(root) // 4096 * 4096], version=version)
    for name in ("verity", "uki", "disk"):
        bench.run(name)
    return bench.inputs["disk"] / f"mixos-{version}-x86_64.img"


def sign(text: str) -> Front:
    return Front(text, ("signature",), {"1.root.json": "{}"})


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    base = tmp_path_factory.mktemp("images")
    return [image(base, version, version.encode() * 40) for version in ("1.0.0", "1.1.0")]


def test_a_release_is_read_from_its_image(images):
    found = bundle.load(images[0])
    assert (found.version, found.kernel) == ("1.0.0", "6.6.8-mixos")
    assert found.root[1 << 20 :].startswith(b"1.0.0")


def test_a_bundle_makes_what_the_image_has(images, tmp_path):
    old, new = map(bundle.load, images)
    path = tmp_path / "new.mixb"
    bundle.make(new, [old], FACTS, sign, path)
    again = bundle.load(path)
    assert again == new
    with path.open("rb") as stream:
        front, start = container.read(stream.read)
    found = manifest.parse(front.manifest)
    assert (found.version, found.sequence, found.minimum_sequence) == ("1.1.0", 7, 3)
    whole, way = found.plans
    assert way.source == old.installed
    assert way.transfer < whole.transfer
    assert path.stat().st_size >= start + whole.transfer
    recipe = windows.read_plan(path.read_bytes()[start + way.root.offset :][: way.root.size])
    target = windows.Target.of(new.root)
    out = bytearray(len(new.root))
    windows.apply(
        recipe,
        target,
        range(len(target.windows)),
        lambda offset, length: old.root[offset : offset + length],
        lambda offset, length: path.read_bytes()[start + offset :][:length],
        lambda offset, data: out.__setitem__(slice(offset, offset + len(data)), data),
    )
    assert bytes(out) == new.root


def test_a_bundle_of_a_bundle(images, tmp_path):
    """The release before is at hand as the bundle that it was."""
    old, new = map(bundle.load, images)
    bundle.make(old, [], FACTS, sign, tmp_path / "old.mixb")
    bundle.make(new, [bundle.load(tmp_path / "old.mixb")], FACTS, sign, tmp_path / "new.mixb")
    assert bundle.load(tmp_path / "new.mixb") == new


def test_hooks_are_in_the_payload(images, tmp_path):
    new, path = bundle.load(images[1]), tmp_path / "new.mixb"
    hooks = (bundle.Hook("before-stage", b"#!/bin/sh\n", 30), bundle.Hook("before-apply", b"exit 1", 5))
    found = bundle.make(new, [], replace(FACTS, hooks=hooks), sign, path)
    with path.open("rb") as stream:
        _, start = container.read(stream.read)
    data = path.read_bytes()[start:]
    assert [(one.when, one.seconds, data[one.offset :][: one.size]) for one in found.hooks] == [
        (one.when, one.seconds, one.data) for one in hooks
    ]
    assert bundle.load(path) == new


def test_an_encrypted_bundle_is_read_by_who_made_it(images, tmp_path):
    old, new = map(bundle.load, images)
    public = X25519PrivateKey.generate().public_key().public_bytes_raw()

    def key(digest):
        return hashlib.sha256(b"a secret" + digest).digest()

    path, plain = tmp_path / "new.mixb", tmp_path / "plain.mixb"
    found = bundle.make(new, [old], FACTS, sign, path, lock=bundle.Lock((public,), key))
    bundle.make(new, [old], FACTS, sign, plain)
    with path.open("rb") as stream, plain.open("rb") as other:
        front, start = container.read(stream.read)
        _, begin = container.read(other.read)
    payload = plain.read_bytes()[begin:]
    assert found.encryption.size == len(payload)
    assert path.stat().st_size == start + sealing.stored(len(payload))
    assert front.recipients.keys() == {sealing.name(public)}
    assert payload[: 1 << 12] not in path.read_bytes()
    assert bundle.load(path, key) == new
    assert bundle.check(path) == found
    again = bundle.make(new, [old], FACTS, sign, plain, lock=bundle.Lock((public,), key))
    assert again == found, "signatures that were waited for are of the same text"
    for wrong in (None, lambda digest: bytes(32)):
        with pytest.raises(ImageError) as caught:
            bundle.load(path, wrong)
        assert caught.value.reason == "bundle-encrypted"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ImageError) as caught:
        bundle.check(path)
    assert caught.value.reason == "bundle-damaged"


def test_nothing_is_signed_for_a_key_that_belongs_to_nobody(images, tmp_path):
    signed = []
    lock = bundle.Lock((bytes(32),), lambda digest: digest)
    with pytest.raises(UsageError) as caught:
        bundle.make(bundle.load(images[1]), [], FACTS, signed.append, tmp_path / "new.mixb", lock=lock)
    assert (caught.value.reason, signed, (tmp_path / "new.mixb").exists()) == ("device-key", [], False)


@pytest.mark.parametrize(
    "words",
    [
        ("before-stage",),
        ("=FILE",),
        ("never=FILE",),
        ("before-stage=",),
        ("before-stage=FILE-that-is-not-there",),
        ("before-stage=EMPTY",),
        ("before-stage=LARGE",),
        ("before-stage:0=FILE",),
        ("before-stage:121=FILE",),
        ("before-stage:x=FILE",),
        ("before-stage:60=FILE", "before-stage:61=FILE"),
        ("before-stage:1=FILE",) * 9,
    ],
)
def test_hooks_that_cannot_be(words, tmp_path):
    for name, data in (("FILE", b"exit"), ("EMPTY", b""), ("LARGE", bytes((256 << 10) + 1))):
        (tmp_path / name).write_bytes(data)
    places = [text if text.endswith("=") else text.replace("=", f"={tmp_path}/") for text in words]
    with pytest.raises(UsageError) as caught:
        bundle.read_hooks(places)
    assert caught.value.reason == "bundle-hook"


def test_hooks_are_read(tmp_path):
    (tmp_path / "a=b").write_bytes(b"#!/bin/sh")
    given = [f"before-stage={tmp_path}/a=b", f"before-apply:120={tmp_path}/a=b"]
    found = [(one.when, one.data, one.seconds) for one in bundle.read_hooks(given)]
    assert found == [("before-stage", b"#!/bin/sh", 30), ("before-apply", b"#!/bin/sh", 120)]


def test_the_same_bundle_again(images, tmp_path):
    old, new = map(bundle.load, images)
    for name in ("a", "b"):
        bundle.make(new, [old], FACTS, sign, tmp_path / name, jobs=2)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_way_that_gains_nothing_is_left_out(images, tmp_path):
    new = replace(bundle.load(images[1]), root=os.urandom(1 << 20))
    other = replace(new, version="0.9.0", root=os.urandom(1 << 20), uki=os.urandom(4096), root_hash=b"\1" * 32)
    bundle.make(new, [other], FACTS, sign, tmp_path / "with")
    bundle.make(new, [], FACTS, sign, tmp_path / "without")
    assert (tmp_path / "with").stat().st_size <= (tmp_path / "without").stat().st_size + 4096


def test_refused(images, tmp_path):
    new = bundle.load(images[1])
    with pytest.raises(ImageError) as caught:
        bundle.make(new, [new], FACTS, sign, tmp_path / "x")
    assert caught.value.reason == "bundle-same"
    with pytest.raises(UsageError) as wrong:
        bundle.make(new, [], replace(FACTS, minimum=FACTS.sequence + 1), sign, tmp_path / "x")
    assert wrong.value.reason == "bundle-minimum"
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x").exists()
    damaged = tmp_path / "damaged.img"
    damaged.write_bytes(images[0].read_bytes())
    with damaged.open("r+b") as disk:
        offset = gpt.read(disk.fileno()).find("mixos-root-a").offset
        os.pwrite(disk.fileno(), b"!", offset + 5000)
    with pytest.raises(ImageError) as caught:
        bundle.load(damaged)
    assert caught.value.reason == "bundle-image"
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ImageError):
        bundle.load(tmp_path / "text")


def test_a_bundle_that_is_not_all_there(images, tmp_path):
    whole = tmp_path / "whole.mixb"
    made = bundle.make(bundle.load(images[1]), [bundle.load(images[0])], FACTS, sign, whole)
    assert bundle.check(whole) == made
    data = whole.read_bytes()
    for wrong in (data[:-1], data[: len(data) // 2], data[:100], data[:20], data[:-2] + bytes(2)):
        path = tmp_path / "wrong.mixb"
        path.write_bytes(wrong)
        with pytest.raises(ImageError) as caught:
            bundle.check(path)
        assert caught.value.reason in {"bundle-damaged", "bundle-short"}
        assert str(path) in caught.value.message


def test_what_is_neither_an_image_nor_a_bundle_is_named(tmp_path):
    (tmp_path / "text").write_text("words\n" * 1000)
    (tmp_path / "empty").touch()
    for name, reason in (("text", "gpt-disk-too-small"), ("empty", "gpt-disk-too-small"), ("", "cannot-read")):
        path = tmp_path / name
        with pytest.raises(ImageError) as caught:
            bundle.load(path)
        assert (caught.value.reason, str(path) in caught.value.message) == (reason, True)
