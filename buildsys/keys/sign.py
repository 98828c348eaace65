"""From the text of a manifest to a front that devices trust: a new list of releases, what describes it, signatures.

What a device would check is checked here before anything is written: a front that leaves this module is one that a
device with the project's anchors takes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp

from buildsys.files import atomic_write
from buildsys.keys import openpgp, tuf
from buildsys.keys.private import Private
from buildsys.keys.public import Public, dump, name_of, read
from common.bundle import manifest as manifests
from common.bundle.container import Front
from common.errors import KeysError
from common.trust.channel import CUSTOM, Terms, version_of
from common.trust.metadata import Kept, Trusted
from common.trust.release import Anchors, listed, of_front, signed_by


def sign_release(text: str, private: Private, public: Public, now: datetime, terms: Terms | None = None) -> Front:
    """Release a manifest: list it, sign, keep it and the new metadata in the project's folder.

    terms: on which the channel offers it; None: as before, and a new one is not offered. Keys that are elsewhere sign
    there: what they must sign is left in `pending`, and the call fails with KeysError `keys-pending`, which names it;
    once it is signed the same call goes on. Raises also BundleError for a manifest that breaks its format, and
    TrustError when a device would refuse the outcome.
    """
    manifest = manifests.parse(text)
    root = public.root()
    target = _target(text, manifest.target, terms, public)

    def listing(targets: Targets) -> None:
        targets.targets[manifest.target] = target

    try:
        changed = _changed(listing, root, private, public, now)
        front = Front(text, _signatures(text, manifest.version, private, public), _files(public, changed))
    except KeysError as error:
        if error.reason == "keys-pending":  # what goes on must be the same release, to the second
            atomic_write(public.pending / f"{manifest.version}.json", text.encode())
        raise
    oldest = next(iter(public.versions("root").values())).read_bytes()
    anchors = Anchors(oldest, _certificates(public), public.policy())
    signed = max(now, tuf.utc_now())  # signing takes a while, and no signature may be of a later time than it is
    trusted = Trusted(anchors.root, Kept(), signed)
    trusted.update(of_front(front))
    listed(trusted, text)
    signed_by(anchors, front, signed)
    public.keep_manifest(manifest.target, target, text)
    _keep(changed, public)
    for path in public.pending.glob(f"{manifest.version}.json*"):
        path.unlink()
    return front


def withdraw(version: str, private: Private, public: Public, now: datetime) -> None:
    """Take a release off the list: devices that learn of the new list refuse its bundles. Raises KeysError."""
    name = _released(version, public)
    amend(lambda targets: targets.targets.pop(name), private, public, now)


def set_terms(terms: Mapping[str, Terms], private: Private, public: Public, now: datetime) -> None:
    """Offer releases (by version) on other terms. Raises KeysError."""
    names = {_released(version, public): found for version, found in terms.items()}

    def change(targets: Targets) -> None:
        for name, found in names.items():
            targets.targets[name].unrecognized_fields["custom"] = _custom(found)

    amend(change, private, public, now)


def amend(change: Callable[[Targets], object], private: Private, public: Public, now: datetime) -> None:
    """Change the list of releases, sign it and what describes it, and keep them. Raises KeysError; with `keys-pending`
    the same change goes on once the list is signed elsewhere."""
    _keep(_changed(change, public.root(), private, public, now), public)


def _released(version: str, public: Public) -> str:
    """The name of a release on the list. Raises KeysError `keys-unknown`."""
    name = f"release/{version}.json"
    known = public.listed()
    if name not in known:
        there = ", ".join(sorted(filter(None, map(version_of, known)))) or "none"
        raise KeysError(f"there is no release {version} on the list", reason="keys-unknown", hint=f"there are: {there}")
    return name


def _changed(
    change: Callable[[Targets], object], root: Metadata[Root], private: Private, public: Public, now: datetime
) -> list[Metadata[Any]]:
    targets = _following(Targets, public.newest("targets"), now)
    change(targets)
    changed = [_signed(targets, root, private, public, now)]
    changed.append(_snapshot(changed[0], root, private, public, now))
    changed.append(_timestamp(changed[1], root, private, public, now))
    return changed


def _keep(changed: list[Metadata[Any]], public: Public) -> None:
    """Write new metadata, the timestamp last: it makes the others current."""
    for metadata in changed:
        public.write(metadata)
        (public.pending / name_of(metadata)).unlink(missing_ok=True)


def renew(private: Private, public: Public, now: datetime) -> list[str]:
    """The same releases with a fresh timestamp, and whatever the keys of the newest root have not signed or is about to
    expire signed anew; the roles that were. Raises KeysError `keys-none` when nothing was released."""
    root = public.root()
    targets, snapshot = public.newest("targets"), public.newest("snapshot")
    if targets is None or snapshot is None:
        raise KeysError("nothing was released yet", reason="keys-none")
    changed = []
    if not _holds(targets, root, now):
        targets = _signed(_following(Targets, targets, now), root, private, public, now)
        changed.append(targets)
    if changed or not _holds(snapshot, root, now):
        snapshot = _snapshot(targets, root, private, public, now)
        changed.append(snapshot)
    changed.append(_timestamp(snapshot, root, private, public, now))
    _keep(changed, public)
    return [metadata.signed.type for metadata in changed]


def _holds(metadata: Metadata[Any], root: Metadata[Root], now: datetime) -> bool:
    """Whether metadata is signed by today's keys and good for longer than a new timestamp."""
    signed = metadata.signed
    result = root.signed.get_verification_result(signed.type, metadata.signed_bytes, metadata.signatures)
    return bool(result) and not signed.is_expired(tuf.until("timestamp", now))


def _target(text: str, name: str, terms: Terms | None, public: Public) -> TargetFile:
    """How the list names a manifest. Raises KeysError `keys-released` when another one has that name."""
    target = TargetFile.from_data(name, text.encode(), ["sha256"])
    before = public.listed().get(name)
    if before is not None:
        if (before.length, before.hashes) != (target.length, target.hashes):
            hint = "withdraw that one first, or give this one another version"
            raise KeysError(f"another manifest is released as {name}", reason="keys-released", hint=hint)
        target = copy.deepcopy(before)
    if terms is not None:
        target.unrecognized_fields["custom"] = _custom(terms)
    return target


def _custom(terms: Terms) -> dict[str, object]:
    return {CUSTOM: terms.model_dump(mode="json", by_alias=True)}


def _snapshot(
    targets: Metadata[Any], root: Metadata[Root], private: Private, public: Public, now: datetime
) -> Metadata[Any]:
    following = _following(Snapshot, public.newest("snapshot"), now)
    following.meta = {"targets.json": _described(targets)}
    return _signed(following, root, private, public, now)


def _timestamp(
    snapshot: Metadata[Any], root: Metadata[Root], private: Private, public: Public, now: datetime
) -> Metadata[Any]:
    following = _following(Timestamp, public.newest("timestamp"), now)
    following.snapshot_meta = _described(snapshot)
    return _signed(following, root, private, public, now)


def _following(kind: Any, before: Metadata[Any] | None, now: datetime) -> Any:
    """The next version of a role's metadata, or the first."""
    expires = tuf.until(kind.type, now)
    if before is None:
        return kind(version=1, expires=expires)
    following = copy.deepcopy(before.signed)
    following.version += 1
    following.expires = expires
    return following


def _described(metadata: Metadata[Any]) -> MetaFile:
    return MetaFile.from_data(metadata.signed.version, dump(metadata), ["sha256"])


def _signed(signed: Any, root: Metadata[Root], private: Private, public: Public, now: datetime) -> Metadata[Any]:
    """Signed by the keys of its role that are here, and by those that have signed the same in `pending`."""
    path = public.pending / name_of(Metadata(signed))
    metadata = (_waiting(path, signed, now) if path.exists() else None) or Metadata(signed)
    role = root.signed.roles[signed.type]
    tuf.sign(metadata, role, root.signed, private)
    result = root.signed.get_verification_result(signed.type, metadata.signed_bytes, metadata.signatures)
    if result:
        return metadata
    public.pending.mkdir(exist_ok=True)
    atomic_write(path, dump(metadata))
    names = ", ".join(tuf.name_of(key) for key in result.unsigned.values())
    hint = f"run 'mixos keys sign {path}' where these keys are, then this again"
    raise KeysError(
        f"{signed.type} needs {result.missing} more signatures, of: {names}", reason="keys-pending", hint=hint
    )


def _waiting(path: Path, signed: Any, now: datetime) -> Metadata[Any] | None:
    """What waits for signatures, if it says the same; it was made earlier, and ends earlier."""
    found = read(path)
    if found.signed.is_expired(now) or found.signed.to_dict() | {"expires": ""} != signed.to_dict() | {"expires": ""}:
        return None
    return found


def _signatures(text: str, version: str, private: Private, public: Public) -> tuple[str, ...]:
    """By every release key that is here; and those that other machines have made, from `pending`."""
    made = [openpgp.sign(private, text, fingerprint) for fingerprint in openpgp.held(private)]
    made += [openpgp.read_signature(path) for path in sorted(public.pending.glob(f"{version}.json.*.asc"))]
    if made:
        return tuple(made)
    public.pending.mkdir(exist_ok=True)
    path = public.pending / f"{version}.json"
    atomic_write(path, text.encode())
    hint = f"run 'mixos keys sign {path}' where it is, bring the .asc file back beside it, then this again"
    raise KeysError("the OpenPGP key of releases is not here", reason="keys-pending", hint=hint)


def _files(public: Public, changed: list[Metadata[Any]]) -> dict[str, str]:
    """The metadata of a front, by the names that it has in a channel: all roots, and the newest of the others."""
    roots = {path.name: path.read_text(encoding="utf-8") for path in public.versions("root").values()}
    return roots | {name_of(one): dump(one).decode() for one in changed}


def _certificates(public: Public) -> bytes:
    return (public.device / "openpgp.asc").read_bytes()
