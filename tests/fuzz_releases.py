"""Mutated fronts, manifests, metadata and signatures without end: nothing but errors of ours, nothing forged taken.

`python -m tests.fuzz_releases 1000000 [SEED]` says how many of each kind ran, or ends with what it found.
"""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import random
import sys
import time
from collections.abc import Callable

from common.bundle import container, manifest
from common.errors import BundleError, TrustError
from common.trust import openpgp
from common.trust.metadata import Kept, Trusted
from tests.releases import NOW, Repository, Signer, served, text

SLOW = 5.0  # seconds that no single input may take


def mutated(data: bytes, drawn: random.Random, others: list[bytes]) -> bytes:
    """A few pieces of it changed, cut, doubled, or taken from another input."""
    content = bytearray(data)
    for _ in range(drawn.randint(1, 4)):
        place, length = drawn.randrange(len(content) + 1), drawn.choice((0, 1, 1, 2, 4, 30))
        other = drawn.choice(others)
        start = drawn.randrange(len(other))
        piece = drawn.choice(
            (drawn.randbytes(drawn.randint(0, 4)), content[place : place + length] * 2, other[start : start + 30])
        )
        content[place : place + length] = piece
    return bytes(content)


def kinds() -> dict[str, tuple[list[bytes], Callable[[bytes], bool]]]:
    """Kind → inputs that are good, and what is run: whether it took the input."""
    repository, signer, message = Repository(roots=2), Signer(), text()
    repository.next_root()
    repository.release(message)
    pinned = openpgp.certificates(str(signer.cert).encode(), [signer.fingerprint])
    fronts = container.Front(message, (signer.sign(message),), {n: d.decode() for n, d in repository.files.items()})
    body = container.dump(fronts)[48:]

    def front(data: bytes) -> bool:
        head = container._HEAD.pack(container.MAGIC, 1, len(data), hashlib.sha256(data).digest())
        container.read(io.BytesIO(head + data).read)
        return True

    def parse(data: bytes) -> bool:
        manifest.parse(data.decode("latin-1"))
        return True

    def of_role(name: str) -> Callable[[bytes], bool]:
        def run(data: bytes) -> bool:
            trusted = Trusted(repository.anchor, Kept(), NOW)
            trusted.update(served(repository.files | {name: data}))
            assert trusted.targets.targets == repository.targets.targets
            return True

        return run

    def signature(data: bytes) -> bool:
        return bool(openpgp.judge(pinned, message.encode(), [data.decode("latin-1")], NOW).certificates)

    def packet(data: bytes) -> bool:
        armor = f"-----BEGIN PGP SIGNATURE-----\n\n{base64.b64encode(data).decode()}\n-----END PGP SIGNATURE-----\n"
        return signature(armor.encode())

    armored = signer.sign(message)
    files = {
        name: data
        for name, data in repository.files.items()
        if name not in ("1.root.json", "1.targets.json", "1.snapshot.json")
    }
    return {
        "front": ([body], front),
        "manifest": ([message.encode()], parse),
        "signature": ([armored.encode()], signature),
        "packet": (list(openpgp.packets(armored)), packet),
        "kept": ([Kept((repository.files["2.root.json"],), ()).dump()], lambda data: bool(Kept.parse(data))),
        **{name: ([data], of_role(name)) for name, data in files.items()},
    }


def main() -> int:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else time.time_ns()
    print(f"seed {seed}", flush=True)
    drawn = random.Random(seed)
    targets = kinds()
    others = [data for inputs, _ in targets.values() for data in inputs]
    names, ran, taken = list(targets), collections.Counter[str](), collections.Counter[str]()
    for number in range(count):
        name = names[number % len(names)]
        inputs, run = targets[name]
        data = mutated(drawn.choice(inputs), drawn, others)
        began = time.monotonic()
        try:
            taken[name] += run(data)
        except (BundleError, TrustError):
            pass
        except BaseException:
            print(f"{name}: {data.hex()}", flush=True)
            raise
        if time.monotonic() - began > SLOW:
            print(f"slow, {name}: {data.hex()}", flush=True)
        ran[name] += 1
    for name in names:
        print(f"{name}: {ran[name]}, taken {taken[name]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
