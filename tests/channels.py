"""Channels for tests: a repository of TUF that offers releases on terms."""

from __future__ import annotations

import hashlib
from datetime import timedelta
from typing import Any

from tuf.api.metadata import TargetFile

from common.bundle import manifest
from common.trust import channel
from common.trust.channel import SHARES, Device, Terms, Wave, candidates
from tests.releases import NOW, RUNNING, Repository, Signer, anchors, text

SECONDS = int(NOW.timestamp())
ROOTS = {version: hashlib.sha256(version.encode()).hexdigest() for version in ("1.2.3", "1.3.0", "1.4.0")}
HERE = Device(RUNNING, "aa" * 32, "0123456789abcdef0123456789abcdef")
EVERYBODY = (Wave.model_validate({"start": SECONDS - 60, "share": SHARES}),)


def waves(*pairs: tuple[int, int]) -> tuple[Wave, ...]:
    """Of (start in seconds from NOW on, share)."""
    return tuple(Wave.model_validate({"start": SECONDS + start, "share": share}) for start, share in pairs)


class Channel:
    """A repository that offers releases."""

    def __init__(self) -> None:
        self.repository = Repository()
        self.signer = Signer()
        self.anchors = anchors(self.repository, self.signer)

    def offer(self, version: str, sequence: int, custom: Any = None, **changes: Any) -> str:
        """List a release on terms; its manifest's text. changes: of the manifest, and of its terms."""
        members = {"paused": changes.pop("paused", None)}
        steps = changes.pop("waves", EVERYBODY)
        root = {**manifest_root(version), **changes.pop("root", {})}
        words = text(version=version, sequence=sequence, **{"minimum-sequence": 0, "root": root, **changes})
        found = Terms.of(manifest.parse(words), steps).model_dump(mode="json", by_alias=True) | members
        name = f"release/{version}.json"
        target = TargetFile.from_data(name, words.encode(), ["sha256"])
        target.unrecognized_fields["custom"] = {"mixos": found} if custom is None else custom
        self.repository.targets.targets[name] = target
        self.repository.files[channel.file_of(name, target)] = words.encode()
        self.repository.bump()
        return words

    def judged(self, device: Device = HERE, seconds: int = 0) -> dict[str, str | None]:
        """Version → why it is not offered to a device, so many seconds after NOW."""
        found = candidates(self.repository.targets, device, NOW + timedelta(seconds=seconds))
        return {one.version: one.why for one in found}


def manifest_root(version: str) -> dict[str, Any]:
    """The member `root` of a release's manifest."""
    whole: dict[str, Any] = manifest.parse(text()).root.model_dump(mode="json", by_alias=True)
    return whole | {"root-hash": ROOTS.get(version, hashlib.sha256(version.encode()).hexdigest())}
