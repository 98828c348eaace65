"""A client of the TUF conformance suite (github.com/theupdateframework/tuf-conformance) around common.trust.metadata.

In a checkout of the suite: `pytest tuf_conformance --entrypoint "PYTHON -m tests.tuf_client"`, with this project's
Python, PYTHONPATH at this checkout, and the package faketime. Tests of delegations do not apply: there are none here.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import urllib.error
import urllib.parse
import urllib.request
from datetime import UTC, datetime
from pathlib import Path

from tuf.api.exceptions import LengthOrHashMismatchError

from common.errors import TrustError
from common.trust.metadata import Fetch, Kept, Trusted

ANCHOR, KEPT = "anchor", "kept"


def channel(url: str) -> Fetch:
    def fetch(name: str, limit: int) -> bytes | None:
        try:
            with urllib.request.urlopen(f"{url.rstrip('/')}/{name}", timeout=10) as answer:
                data: bytes = answer.read(limit + 1)
                return data
        except urllib.error.HTTPError as error:
            if error.code in (403, 404):
                return None
            raise

    return fetch


def refresh(folder: Path, url: str) -> Trusted:
    kept = Kept.parse((folder / KEPT).read_bytes()) if (folder / KEPT).exists() else Kept()
    trusted = Trusted((folder / ANCHOR).read_bytes(), kept, datetime.now(UTC))
    try:
        trusted.update(channel(url))
    finally:
        (folder / KEPT).write_bytes(trusted.kept.dump())
        for old in folder.glob("*.json"):
            old.unlink()
        (folder / "root.json").write_bytes(([(folder / ANCHOR).read_bytes(), *trusted.kept.roots])[-1])
        for role, data in trusted.kept.others:
            (folder / f"{role}.json").write_bytes(data)
    return trusted


def download(trusted: Trusted, name: str, url: str, folder: Path) -> None:
    target = trusted.targets.targets.get(name)
    if target is None:
        raise TrustError(f"{name} is not listed", reason="release-unlisted")
    place = folder / urllib.parse.quote(name, "")
    with contextlib.suppress(OSError, LengthOrHashMismatchError):
        target.verify_length_and_hashes(place.read_bytes())
        return
    parent, _, last = name.rpartition("/")
    if trusted.root.consistent_snapshot:
        last = f"{next(iter(target.hashes.values()))}.{last}"
    data = channel(url)(f"{parent}/{last}".lstrip("/") if parent else last, target.length)
    target.verify_length_and_hashes(data or b"")
    assert data is not None
    place.write_bytes(data)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--metadata-dir", type=Path, required=True)
    parser.add_argument("--metadata-url", default="")
    parser.add_argument("--target-name", action="append", default=[])
    parser.add_argument("--target-dir", type=Path)
    parser.add_argument("--target-base-url", default="")
    parser.add_argument("command", choices=("init", "refresh", "download"))
    parser.add_argument("root", nargs="?")
    given = parser.parse_args()
    try:
        if given.command == "init":
            shutil.copyfile(given.root, given.metadata_dir / ANCHOR)
            shutil.copyfile(given.root, given.metadata_dir / "root.json")
            return 0
        trusted = refresh(given.metadata_dir, given.metadata_url)
        for name in given.target_name if given.command == "download" else ():
            download(trusted, name, given.target_base_url, given.target_dir)
    except (TrustError, OSError, ValueError, LengthOrHashMismatchError) as error:
        print(f"{getattr(error, 'reason', type(error).__name__)}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
