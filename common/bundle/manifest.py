"""The manifest of a release: what the new root image and kernel image are, and in which ways a device comes to them.

Its text is canonical JSON: UTF-8 without characters beyond ASCII, keys sorted, no blanks, numbers whole. There is one
text for one content, so what was signed is what is compared, and nothing can be said twice or hidden between.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any, Literal, NoReturn

from pydantic import ConfigDict, Field, StringConstraints, ValidationError, model_validator

from common.bundle import windows
from common.bundle.order import MAX_BOOT_FILE, MAX_HOOK, MAX_HOOK_SECONDS, MAX_HOOKS, WHENS, File, Order, Piece, When
from common.bundle.order import Hook as OrderHook
from common.disk import verity
from common.errors import BundleError
from common.safe import one_line
from common.tomlfile import Strict, plain

PRODUCT = "mixos"
WINDOW = 4 << 20  # bytes of the target that are made, checked and written at once
MAX_BYTES = 2 << 20  # of a manifest's text: 64 GiB in windows and some plans are less
MAX_ROOT = 64 << 30
MAX_UKI = 512 << 20
MAX_PLAN = 4 << 20
MAX_PAYLOAD = 1 << 40
_MAX_NUMBER = 1 << 53  # what every reader of JSON has exactly (RFC 8259, section 6)

Version = Annotated[
    str, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+([.-][0-9A-Za-z.-]{1,24})?$", max_length=64)
]
Word = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,30}$")]
Hash = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Salt = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{2}){0,256}$")]
One = Annotated[int, Field(ge=1, le=1)]  # a Literal would take true for it
Sequence = Annotated[int, Field(ge=0, lt=_MAX_NUMBER)]


class Exact(Strict):
    """Base of what is signed: as `Strict`, and no value is made of one that has another type."""

    model_config = ConfigDict(strict=True)


class Windows(Exact):
    """The target in windows of `size` bytes, the last one shorter, and the SHA-256 of each."""

    size: Literal[4194304]
    sha256: Annotated[tuple[Hash, ...], Field(min_length=1, max_length=MAX_ROOT // WINDOW, strict=False)]


class _Target(Exact):
    size: int
    sha256: Hash
    windows: Windows

    @model_validator(mode="after")
    def _covered(self) -> _Target:
        if len(self.windows.sha256) != -(-self.size // WINDOW):
            raise ValueError(f"{len(self.windows.sha256)} windows do not make {self.size} bytes")
        return self


class Root(_Target):
    """The root image: whole blocks of dm-verity, and what its tree ends in."""

    size: Annotated[int, Field(gt=0, le=MAX_ROOT, multiple_of=verity.BLOCK)]
    root_hash: Hash
    salt: Salt


class Uki(_Target):
    """The signed unified kernel image."""

    size: Annotated[int, Field(gt=0, le=MAX_UKI)]


class BootFile(_Target):
    """A file of the EFI system partition: the rescue entry, the loader, the loader's configuration."""

    name: Literal["rescue", "loader", "loader-conf"]
    size: Annotated[int, Field(gt=0, le=MAX_BOOT_FILE)]


class Blob(Exact):
    """Bytes of the payload: where they begin, counted from its start, how many, and their hash."""

    offset: Annotated[int, Field(ge=0, lt=MAX_PAYLOAD)]
    size: Annotated[int, Field(gt=0)]
    sha256: Hash


class PlanBlob(Blob):
    """A plan in the payload."""

    size: Annotated[int, Field(gt=0, le=MAX_PLAN)]


class Installed(Exact):
    """A release that a device runs, as the source of a delta."""

    version: Version
    root_hash: Hash
    uki_sha256: Hash


class Plan(Exact):
    """One way to the release. source: what must run for it, None: anything. transfer: bytes to be fetched. files: in
    the order of the manifest's."""

    source: Annotated[Installed | None, Field(alias="from")]
    root: PlanBlob
    uki: PlanBlob
    files: Annotated[tuple[PlanBlob, ...], Field(max_length=3, strict=False)]
    transfer: Annotated[int, Field(ge=0, le=MAX_PAYLOAD)]


class Hook(Blob):
    """A program of the payload that runs sandboxed: when, and after how many seconds it has failed."""

    when: When
    size: Annotated[int, Field(gt=0, le=MAX_HOOK)]
    seconds: Annotated[int, Field(gt=0, le=MAX_HOOK_SECONDS)]


class Encryption(Exact):
    """Of a payload that named devices alone can read (`common.bundle.sealing`): its bytes and their hash before it was
    encrypted, and the hash of its key."""

    size: Annotated[int, Field(gt=0, le=MAX_PAYLOAD)]
    sha256: Hash
    key_sha256: Hash


class Manifest(Exact):
    """The whole. sequence only grows from release to release; minimum_sequence: of what runs, for this update."""

    format: One
    product: Word
    machine: Word
    variant: Word
    version: Version
    sequence: Sequence
    minimum_sequence: Sequence
    created: Annotated[int, Field(ge=0, lt=1 << 40, description="seconds since 1970")]
    kernel: Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z][0-9A-Za-z._+-]{0,63}$")]
    root: Root
    uki: Uki
    files: Annotated[tuple[BootFile, ...], Field(max_length=3, strict=False)]
    plans: Annotated[tuple[Plan, ...], Field(min_length=1, max_length=64, strict=False)]
    hooks: Annotated[tuple[Hook, ...], Field(max_length=MAX_HOOKS, strict=False)]
    encryption: Encryption | None

    @model_validator(mode="after")
    def _sensible(self) -> Manifest:
        if self.minimum_sequence > self.sequence:
            raise ValueError("minimum-sequence is above sequence")
        sources = [plan.source for plan in self.plans]
        if None not in sources:
            raise ValueError("no plan for the whole: a device that runs anything else could not take it")
        hashes = [source.root_hash for source in sources if source]
        if len(set(hashes)) + 1 != len(sources):
            raise ValueError("two plans begin with the same release")
        if len({file.name for file in self.files}) < len(self.files):
            raise ValueError("two files of one name")
        if any(len(plan.files) != len(self.files) for plan in self.plans):
            raise ValueError("a plan that has not the files of the manifest")
        if self.root.root_hash in hashes:
            raise ValueError("a plan begins with this release itself")
        if any(sum(hook.seconds for hook in self.hooks if hook.when == when) > MAX_HOOK_SECONDS for when in WHENS):
            raise ValueError(f"hooks that take more than {MAX_HOOK_SECONDS} s together")
        return self

    @property
    def target(self) -> str:
        """The name under which the metadata of TUF vouches for this manifest."""
        return f"release/{self.version}.json"

    def plan_for(self, root_hash: str) -> Plan:
        """The plan that begins with the release of that root hash; the whole when there is none."""
        whole = next(plan for plan in self.plans if plan.source is None)
        return next((plan for plan in self.plans if plan.source and plan.source.root_hash == root_hash), whole)

    def order(self, payload: int, running: str) -> Order:
        """What a device does that runs the release of this root hash; payload: where it begins in the bundle."""
        chosen = self.plan_for(running)
        plans = [chosen, *(plan for plan in self.plans if chosen.source is not None and plan.source is None)]
        return Order(
            version=self.version,
            sequence=self.sequence,
            kernel=self.kernel,
            created=self.created,
            payload=payload,
            transfer=chosen.transfer,
            source=bytes.fromhex(running) if chosen.source is not None else None,
            root_hash=bytes.fromhex(self.root.root_hash),
            salt=bytes.fromhex(self.root.salt),
            root=_file(self.root, [plan.root for plan in plans]),
            uki=_file(self.uki, [plan.uki for plan in plans]),
            files={
                file.name: _file(file, [plan.files[number] for plan in plans]) for number, file in enumerate(self.files)
            },
            hooks=tuple(OrderHook(hook.when, hook.seconds, _piece(hook)) for hook in self.hooks),
        )


def _file(target: _Target, plans: Iterable[PlanBlob]) -> File:
    digests = tuple(map(bytes.fromhex, target.windows.sha256))
    return File(bytes.fromhex(target.sha256), windows.Target(target.size, digests), tuple(map(_piece, plans)))


def _piece(blob: Blob) -> Piece:
    return Piece(blob.offset, blob.size, bytes.fromhex(blob.sha256))


def parse(text: str) -> Manifest:
    """The manifest of its text. Raises BundleError: `bundle-manifest-form`, `bundle-manifest`."""
    document = canonical_object(text, MAX_BYTES, "bundle-manifest-form")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        found = error.errors()[0]
        where = ".".join(str(part) for part in found["loc"]) or "the manifest"
        raise BundleError(f"the manifest: {one_line(where)}: {one_line(plain(found))}", "bundle-manifest") from error


def dump(manifest: Manifest) -> str:
    """The one text of a manifest."""
    return canonical(manifest.model_dump(mode="json", by_alias=True))


def canonical(document: Any) -> str:
    """Canonical JSON of objects, lists, texts, whole numbers, true, false and null."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical_object(text: str, limit: int, reason: str) -> dict[str, Any]:
    """The object of a canonical JSON text of at most `limit` bytes; raises BundleError with that reason."""
    if len(text) > limit or not text.isascii():
        raise BundleError(f"JSON that is larger than {limit} bytes or not ASCII", reason)
    try:
        document = json.loads(text, parse_int=_whole, parse_float=_never, parse_constant=_never)
        same = canonical(document) == text
    except (ValueError, RecursionError) as error:
        raise BundleError(f"no JSON: {one_line(error)}", reason) from error
    if not isinstance(document, dict) or not same:
        raise BundleError("not the canonical JSON text of an object", reason)
    return document


def _whole(digits: str) -> int:
    if len(digits) > 16:
        raise ValueError("a number that is too large")
    return int(digits)


def _never(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no whole number")
