"""Manifest and front of a bundle: one text for one content, everything bounded, every damage found."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import random
import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.bundle import container, manifest, order
from common.bundle.container import Front
from common.errors import BundleError
from tests.releases import document, hook, text

RECIPIENTS = {bytes([number]) * 8: bytes(range(number, 80 + number)) for number in range(3)}
FRONT = Front(text(), ("-----BEGIN PGP SIGNATURE-----",), {"1.root.json": "{}", "timestamp.json": "{}"}, RECIPIENTS)


def refused(source: str, reason: str) -> None:
    with pytest.raises(BundleError) as caught:
        manifest.parse(source)
    assert caught.value.reason == reason


def changed(*path: str | int, value: Any) -> str:
    whole = document()
    inner: Any = whole
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    return manifest.canonical(whole)


def test_hooks_are_what_a_device_is_told_to_ask():
    hooks = [hook(), hook(when="before-apply", offset=1, seconds=120)]
    found = manifest.parse(text(hooks=hooks))
    assert manifest.dump(found) == text(hooks=hooks)
    one = f'"seconds":120,"sha256":"{"11" * 32}","size":1,"when":"before-apply"'
    assert f'{{"offset":1,{one}}}],"kernel":' in text(hooks=hooks)
    told = order.parse(found.order(4096, "ab" * 32).dump()).hooks
    assert [(one.when, one.seconds, one.piece.offset) for one in told] == [
        ("before-stage", 1, 0),
        ("before-apply", 120, 1),
    ]


@given(
    st.lists(
        st.builds(
            hook,
            when=st.sampled_from(order.WHENS),
            offset=st.integers(0, (1 << 40) - 1),
            size=st.integers(1, order.MAX_HOOK),
            seconds=st.integers(1, order.MAX_HOOK_SECONDS // order.MAX_HOOKS),
        ),
        max_size=order.MAX_HOOKS,
    )
)
@settings(max_examples=50, deadline=None)
def test_hooks_are_told_as_they_are(hooks: list[dict[str, Any]]):
    asked = manifest.parse(text(hooks=hooks)).order(4096, "ab" * 32)
    assert order.parse(asked.dump()) == asked
    assert [(one.when, one.seconds, one.piece.offset, one.piece.size) for one in asked.hooks] == [
        (one["when"], one["seconds"], one["offset"], one["size"]) for one in hooks
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"when": "never"},
        {"when": []},
        {"seconds": 0},
        {"seconds": 121},
        {"seconds": True},
        {"piece": {}},
        {"piece": None},
    ],
)
def test_an_order_with_other_hooks_is_refused(changes: dict[str, Any]):
    told = json.loads(manifest.parse(text(hooks=[hook()])).order(4096, "ab" * 32).dump())
    for hooks in ([{**told["hooks"][0], **changes}], told["hooks"] * 9, None):
        with pytest.raises(BundleError) as caught:
            order.parse(json.dumps({**told, "hooks": hooks}))
        assert caught.value.reason == "order"


def test_a_manifest_is_what_its_text_says_and_back():
    found = manifest.parse(text())
    assert manifest.dump(found) == text()
    assert found.target == "release/1.2.3.json"
    assert found.plan_for("ab" * 32).source is None


def test_a_plan_is_found_by_what_runs():
    old = {"version": "1.2.2", "root-hash": "ab" * 32, "uki-sha256": "cd" * 32}
    plans = [*document()["plans"], {**document()["plans"][0], "from": old}]
    found = manifest.parse(text(plans=plans))
    assert found.plan_for("ab" * 32).source is not None
    assert found.plan_for("cd" * 32).source is None
    same = {**old, "root-hash": "33" * 32}
    for bad in ([plans[1]], [plans[0], plans[0]], [*plans, plans[1]], [plans[0], {**plans[0], "from": same}], []):
        refused(text(plans=bad), "bundle-manifest")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("format",), True),
        (("product",), "Mixos"),
        (("machine",), "x86/64"),
        (("version",), "1.2"),
        (("version",), "1.2.3\n"),
        (("version",), "../../x"),
        (("sequence",), -1),
        (("sequence",), "5"),
        (("sequence",), True),
        (("minimum-sequence",), 6),
        (("created",), 1 << 40),
        (("kernel",), ""),
        (("root", "size"), 0),
        (("root", "size"), (9 << 20) + 1),
        (("root", "size"), 13 << 20),
        (("root", "size"), (64 << 30) + 4096),
        (("root", "root-hash"), "33" * 31),
        (("root", "root-hash"), "AA" * 32),
        (("root", "salt"), "abc"),
        (("root", "windows", "size"), 1 << 20),
        (("root", "windows", "sha256"), []),
        (("root", "windows", "sha256"), ["55" * 32] * 4),
        (("uki", "size"), 0),
        (("uki", "size"), 5 << 20),
        (("plans", 0, "transfer"), -1),
        (("plans", 0, "root", "offset"), -1),
        (("plans", 0, "root", "size"), 0),
        (("plans", 0, "root", "size"), (4 << 20) + 1),
        (("plans", 0, "uki", "more"), 1),
        (("more",), 1),
        (("hooks",), [hook(when="never")]),
        (("hooks",), [hook(size=0)]),
        (("hooks",), [hook(size=(256 << 10) + 1)]),
        (("hooks",), [hook(seconds=0)]),
        (("hooks",), [hook(seconds=121)]),
        (("hooks",), [hook(seconds=60), hook(seconds=61)]),
        (("hooks",), [hook(more=1)]),
        (("hooks",), [hook()] * 9),
        (("hooks",), None),
    ],
)
def test_values_that_cannot_be_are_refused(path: tuple[str | int, ...], value: Any):
    refused(changed(*path, value=value), "bundle-manifest")


@pytest.mark.parametrize("member", sorted(document()))
def test_nothing_may_be_left_out(member: str):
    refused(manifest.canonical({k: v for k, v in document().items() if k != member}), "bundle-manifest")


@pytest.mark.parametrize(
    "source",
    [
        "",
        "[]",
        "null",
        text() + "\n",
        text().replace(":5,", ": 5,"),
        text().replace(":5,", ":5.0,"),
        text().replace(":5,", ":5e0,"),
        text().replace(":5,", ":NaN,"),
        text().replace(":5,", ":" + "9" * 5000 + ","),
        text().replace('"mixos"', '"mi\\u0078os"'),
        text().replace('"mixos"', '"mixös"'),
        text()[:-1] + ',"version":"1.2.3"}',
        json.dumps(document(), sort_keys=False, separators=(",", ":")),
        '{"a":' * 50000 + "1" + "}" * 50000,
        '"' * 100000,
        " " * (manifest.MAX_BYTES + 1),
    ],
    ids=range(16),
)
def test_there_is_one_text_for_one_content(source: str):
    refused(source, "bundle-manifest-form")


def test_a_manifest_for_the_largest_root_fits():
    windows = {"size": 4 << 20, "sha256": ["55" * 32] * (64 << 8)}
    whole = text(root={**document()["root"], "size": 64 << 30, "windows": windows})
    assert len(container.dump(Front(whole, FRONT.signatures, {"1.root.json": "x" * container.MAX_FILE}))) < 2 << 20
    assert manifest.parse(whole).root.size == 64 << 30


# -- front -------------------------------------------------------------------------------------------------------------


def read(data: bytes) -> tuple[Front, int]:
    return container.read(io.BytesIO(data).read)


def unreadable(data: bytes, *reasons: str) -> None:
    with pytest.raises(BundleError) as caught:
        read(data)
    assert caught.value.reason in reasons


def test_a_front_comes_back_and_the_payload_follows():
    data = container.dump(FRONT)
    assert read(data + b"payload") == (FRONT, len(data))


def test_every_single_bit_counts():
    data = container.dump(FRONT)
    drawn = random.Random(1)
    for bit in [*range(48 * 8), *(drawn.randrange(48 * 8, len(data) * 8) for _ in range(1000))]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        unreadable(bytes(flipped), "bundle-magic", "bundle-format", "bundle-front", "bundle-short", "bundle-damaged")


def test_every_shorter_one_is_said_to_be_short():
    data = container.dump(FRONT)
    for length in [*range(8, 60), len(data) // 2, len(data) - 1]:
        unreadable(data[:length], "bundle-short")
    unreadable(data[:5], "bundle-magic")


def test_a_front_never_asks_for_more_than_it_may_have():
    asked: list[int] = []

    def take(count: int) -> bytes:
        asked.append(count)
        return head[:count]

    head = container._HEAD.pack(container.MAGIC, 1, container.MAX_FRONT + 1, bytes(32))
    with pytest.raises(BundleError) as caught:
        container.read(take)
    assert caught.value.reason == "bundle-front"
    assert asked == [48]


@pytest.mark.parametrize(
    "front",
    [
        Front("m", (), {"1.root.json": "{}"}),
        Front("m", ("s",) * 17, {"1.root.json": "{}"}),
        Front("m", ("s" * 20000,), {"1.root.json": "{}"}),
        Front("m", ("s",), {}),
        Front("m", ("s",), {"../1.root.json": "{}"}),
        Front("m", ("s",), {"0.root.json": "{}"}),
        Front("m", ("s",), {"other.json": "{}"}),
        Front("m", ("s",), {"1.root.json": "x" * 600000}),
        Front("m", ("s",), {f"{n}.root.json": "{}" for n in range(1, 80)}),
        Front("m" * (3 << 20), ("s",), {"1.root.json": "{}"}),
        Front("m", ("s",), {"1.root.json": "{}"}, {number.to_bytes(8, "big"): bytes(80) for number in range(4097)}),
        Front("m", ("s",), {"1.root.json": "{}"}, {bytes(8): bytes(79)}),
        Front("m", ("s",), {"1.root.json": "{}"}, {bytes(7): bytes(80)}),
    ],
    ids=range(13),
)
def test_what_no_front_may_hold_is_neither_written_nor_read(front: Front):
    with pytest.raises(BundleError) as caught:
        container.dump(front)
    assert caught.value.reason == "bundle-front"
    recipients = {name.hex(): base64.b64encode(key).decode() for name, key in front.recipients.items()}
    document = {"manifest": front.manifest, "recipients": recipients, "signatures": list(front.signatures)}
    document["tuf"] = front.tuf
    unreadable(packed(manifest.canonical(document).encode()), "bundle-front")


def packed(body: bytes) -> bytes:
    """A front with a right hash, whatever it holds."""
    import hashlib

    return container._HEAD.pack(container.MAGIC, 1, len(body), hashlib.sha256(body).digest()) + body


def test_a_front_for_as_many_devices_as_may_be():
    recipients = {number.to_bytes(8, "big"): bytes(80) for number in range(4096)}
    front = Front(FRONT.manifest, FRONT.signatures, FRONT.tuf, recipients)
    assert read(container.dump(front))[0] == front


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"manifest":1,"recipients":{},"signatures":[],"tuf":{}}',
        b'{"manifest":"m","signatures":["s"],"tuf":{"1.root.json":"{}"}}',
        b'{"manifest":"m","recipients":[],"signatures":["s"],"tuf":{"1.root.json":"{}"}}',
        b'{"manifest":"m","recipients":{"00":"00"},"signatures":["s"],"tuf":{"1.root.json":"{}"}}',
        b"[" * 100000,
    ],
)
def test_other_json_is_no_front(body: bytes):
    unreadable(packed(body), "bundle-front")


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 5000), st.binary(max_size=6), st.integers(0, 6))
def test_mutated_fronts_raise_nothing_but_their_own_errors(place: int, piece: bytes, length: int):
    body = bytearray(container.dump(FRONT)[48:])
    place %= len(body)
    body[place : place + length] = piece
    with contextlib.suppress(BundleError):
        front, _ = read(packed(bytes(body)))
        manifest.parse(front.manifest)


@pytest.mark.parametrize("piece", [b"[],", b'{"a":1},', b'"",'])
def test_a_front_of_another_form_is_refused_before_it_takes_memory(piece: bytes):
    body = b'{"manifest":[' + piece * ((container.MAX_FRONT - 100) // len(piece)) + b'0],"signatures":[],"tuf":{}}'
    head = container._HEAD.pack(container.MAGIC, container.FORMAT, len(body), hashlib.sha256(body).digest())
    stream = io.BytesIO(head + body)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError) as caught:
            container.read(stream.read)
        assert caught.value.reason == "bundle-front"
        assert tracemalloc.get_traced_memory()[1] < 4 * container.MAX_FRONT
    finally:
        tracemalloc.stop()
