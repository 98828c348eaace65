"""One wrong bit, anywhere in what comes with an update or in what it begins with: refused, or without any effect.

What is asked is the device's own code, from the first byte of a bundle to the bytes that would be written. `make test`
turns some bits of each kind, `make test-long` a thousand.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from buildsys import bundle
from buildsys.bundle import Content
from common.bundle import container
from common.bundle.container import Front
from common.bundle.order import File, Order, parse
from common.disk import verity
from common.efi import uki
from common.errors import MixosError
from common.trust import openpgp
from common.trust.release import verify
from daemon.slots import worker
from tests.images import RELEASE, STUB, kernel
from tests.offers import FACTS
from tests.plans import image, text
from tests.releases import NOW, RUNNING, Repository, Signer, anchors, front

WHOLE = "MIXOS_WHOLE" in os.environ
BITS = 1000 if WHOLE else 25
BLOCKS = [text(number, 30_000) for number in range(12)]
SALT = bytes(32)


def content(base: Path, version: str, root: bytes) -> Content:
    """A release, as it would be read from its image."""
    (base / "root").write_bytes(root)
    with (base / "root").open("rb") as file:
        tree = verity.build(file.fileno(), len(root), SALT)
    line = f'root=/dev/dm-0 dm-mod.create="{verity.dm_create(tree)}" panic=10'
    identity = f'ID=mixos\nIMAGE_ID=mixos\nIMAGE_VERSION="{version}"\n'
    return Content(version, RELEASE, root, uki.build(STUB, kernel(), line, identity, RELEASE), tree.root, SALT)


class Offer:
    """A signed bundle, and a device that takes it."""

    def __init__(self, base: Path) -> None:
        self.old = content(base, "1.0.0", image(BLOCKS))
        self.new = content(base, "1.1.0", image([*BLOCKS[:3], text(99, 9000), *BLOCKS[3:9], BLOCKS[10][:20_000]]))
        self.repository, self.signer, self.base = Repository(roots=2), Signer(), base
        self.repository.next_root()
        bundle.make(self.new, [self.old], FACTS, self._signed, base / "bundle")
        self.data = (base / "bundle").read_bytes()
        self.front, self.payload = container.read(io.BytesIO(self.data).read)
        self.trust = anchors(self.repository, self.signer)
        self._known: dict[bytes, Order] = {}

    def _signed(self, message: str) -> Front:
        self.repository.release(message, "1.1.0")
        return front(self.repository, message, self.signer)

    def order(self, data: bytes) -> Order:
        """What a device that has never taken anything would install. Raises MixosError."""
        stream = io.BytesIO(data)
        found, payload = container.read(stream.read)
        head = data[:payload]
        if head not in self._known:
            folder = self.base / "kept"
            release = verify(found, self.trust, folder, RUNNING, NOW)
            (folder / "trusted.json").unlink()
            self._known[head] = parse(release.manifest.order(payload, self.old.root_hash.hex()).dump())
        return self._known[head]

    def made(self, data: bytes, order: Order, root: bytes, image: bytes) -> tuple[bytes, bytes]:
        """What would be written. Raises MixosError."""

        def payload(offset: int, length: int) -> bytes:
            return data[order.payload + offset :][:length]

        return made(order.root, root, payload), made(order.uki, image, payload)

    def taken(self, data: bytes, *, root: bytes | None = None, image: bytes | None = None) -> bool:
        """Whether a device takes that, with what runs there; it is the release then, in every bit."""
        try:
            order = self.order(data)
            found = self.made(data, order, root or self.old.root, image or self.old.uki)
        except MixosError:
            return False
        finally:
            (self.base / "kept" / "trusted.json").unlink(missing_ok=True)
        assert found == (self.new.root, self.new.uki)
        assert order.version == "1.1.0"
        return True

    def fronted(self, **changes: Any) -> bytes:
        """The bundle with another front, whose hash fits."""
        return container.dump(replace(self.front, **changes)) + self.data[self.payload :]

    def hashed(self, body: bytes) -> bytes:
        """The same, of the front's bytes."""
        head = container._HEAD.pack(container.MAGIC, 1, len(body), hashlib.sha256(body).digest())
        return head + body + self.data[self.payload :]


def made(file: File, old: bytes, payload: Callable[[int, int], bytes]) -> bytes:
    out = bytearray(file.size)

    def write(offset: int, data: memoryview) -> None:
        out[offset : offset + len(data)] = data

    wanted = list(range(len(file.target.windows)))
    worker._by_plans(file, wanted, reader(old), reader(out), payload, write, lambda number: None)
    return bytes(out)


def reader(data: bytes | bytearray) -> Callable[[int, int], bytes]:
    return lambda offset, length: bytes(data[offset : offset + length])


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def armored(packet: bytes) -> str:
    return f"-----BEGIN PGP SIGNATURE-----\n\n{base64.b64encode(packet).decode()}\n-----END PGP SIGNATURE-----\n"


Take = Callable[[bytes], bool]


def artefacts(offered: Offer) -> dict[str, tuple[bytes, Take]]:
    """Name → what it is, and whether a device takes what there is when it is something else."""
    front, data, payload = offered.front, offered.data, offered.payload
    (packet,) = openpgp.packets(front.signatures[0])
    order = offered.order(data)

    def part(start: int, end: int) -> tuple[bytes, Take]:
        return data[start:end], lambda one: offered.taken(data[:start] + one + data[end:])

    def metadata(name: str) -> Take:
        return lambda one: offered.taken(offered.fronted(tuf={**front.tuf, name: one.decode("latin-1")}))

    def plan(file: File, number: int) -> tuple[bytes, Take]:
        start = payload + file.plans[number].offset
        return part(start, start + file.plans[number].size)

    return {
        "header": part(0, 48),
        "front": part(48, payload),
        "front with its hash": (data[48:payload], lambda one: offered.taken(offered.hashed(one))),
        "manifest": (
            front.manifest.encode(),
            lambda one: offered.taken(offered.fronted(manifest=one.decode("latin-1"))),
        ),
        "signature": (packet, lambda one: offered.taken(offered.fronted(signatures=(armored(one),)))),
        **{name: (words.encode(), metadata(name)) for name, words in front.tuf.items()},
        "plan of the root": plan(order.root, 0),
        "plan of the UKI": plan(order.uki, 0),
        "payload": part(payload, len(data)),
        "root that runs": (offered.old.root, lambda one: offered.taken(data, root=one)),
        "UKI that runs": (offered.old.uki, lambda one: offered.taken(data, image=one)),
    }


# How many of the bits matter: all, none, or some.
ALL, NONE, SOME = "all", "none", "some"
MATTER = {
    "header": ALL,
    "front": ALL,
    "front with its hash": SOME,
    "manifest": ALL,
    "signature": SOME,  # what a signature says of itself without signing that
    "1.root.json": NONE,  # the image has it
    "2.root.json": SOME,  # the other one of two keys signs, too
    "1.targets.json": NONE,  # of the release before
    "2.targets.json": ALL,
    "1.snapshot.json": NONE,
    "2.snapshot.json": ALL,
    "timestamp.json": SOME,
    "plan of the root": ALL,
    "plan of the UKI": ALL,
    "payload": SOME,  # what a device does not use that runs something else
    "root that runs": NONE,  # where it is damaged, more is fetched
    "UKI that runs": NONE,
}


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> Offer:
    return Offer(tmp_path_factory.mktemp("offer"))


def test_every_artefact_is_tried(offered: Offer) -> None:
    assert artefacts(offered).keys() == MATTER.keys()
    for data, take in artefacts(offered).values():
        assert take(data)


@pytest.mark.parametrize("name", MATTER)
def test_no_bit_makes_another_release(
    offered: Offer, name: str, record_property: Callable[[str, object], None]
) -> None:
    data, take = artefacts(offered)[name]
    chance = random.Random(name)
    bits = [*range(48 * 8)] if name == "header" else chance.sample(range(8 * len(data)), min(BITS, 8 * len(data)))
    taken = sum(take(flipped(data, bit)) for bit in bits)
    record_property("bits", (len(bits), taken))
    assert {ALL: taken == 0, NONE: taken == len(bits), SOME: taken < len(bits) or not WHOLE}[MATTER[name]], taken


def test_what_damage_of_the_running_root_makes_too_long_is_fetched(offered: Offer) -> None:
    """A frame that is packed again from it has another length then: the window has another size, not another hash."""
    assert offered.taken(offered.data, root=flipped(offered.old.root, 654067))
