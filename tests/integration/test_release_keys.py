"""`mixos keys` and signing of releases with GnuPG, judged by gpgv and sqv as well."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric import ed25519

from buildsys.cli.context import Context
from buildsys.cli.keys import keys
from buildsys.keys import openpgp as gnupg
from buildsys.keys import sign
from buildsys.keys.private import Passphrase, Private
from buildsys.keys.public import Public
from buildsys.run import ANY_STATUS, run
from common.errors import ImageError, KeysError, TrustError, UsageError
from common.trust import openpgp
from common.trust.release import Anchors, Running, verify
from tests.releases import text

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
RUNNING = Running("x86_64", "default", sequence=4, floor=3)
Mixos = Callable[..., dict[str, Any]]


def later(days: float = 0.01) -> datetime:
    return datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)


class Bench:
    """A project with keys."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.public = Public(folder / "keys")
        self.private = Private(folder / "p", Passphrase(none=True))
        (folder / "mixos.toml").write_bytes((ROOT / "mixos.toml").read_bytes())
        self._patch = monkeypatch
        self.use(self.private.folder)

    def quick(self) -> None:
        """Have GnuPG derive keys from passphrases without a hundred milliseconds of hashing for each use."""
        (self.private.folder_of("openpgp") / "gpg-agent.conf").write_text("s2k-count 65536\n")

    def use(self, folder: Path) -> None:
        self._patch.setenv("MIXOS_KEYS", str(folder))

    def run(self, *words: str | Path, root: Path | None = None) -> Result:
        return CliRunner().invoke(keys, [*map(str, words), "--json"], obj=Context(root or self.folder, None, None))

    def ok(self, *words: str | Path, root: Path | None = None) -> dict[str, Any]:
        result = self.run(*words, root=root)
        assert result.exception is None, result.exception
        found: dict[str, Any] = json.loads(result.output)
        return found

    def refused(self, reason: str, *words: str | Path, root: Path | None = None) -> None:
        error = self.run(*words, root=root).exception
        assert isinstance(error, KeysError)
        assert error.reason == reason

    def close(self) -> None:
        for home in self.folder.rglob("openpgp"):
            run(["gpgconf", "--homedir", str(home), "--kill", "all"], allow=ANY_STATUS)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    found = Bench(tmp_path, monkeypatch)
    yield found
    found.close()


def test_from_no_keys_to_a_release_that_a_device_takes_and_on_after_new_keys(bench: Bench, tmp_path: Path):
    bench.refused("keys-none", "list")
    made = bench.ok("make", "--simple", "--no-passphrase")
    bench.refused("keys-there", "make", "--simple", "--no-passphrase")
    assert {row["name"] for row in bench.ok("list")["keys"] if row["here"]} == {
        "root-1", "targets-1", "snapshot-1", "timestamp-1", "openpgp", "PK", "KEK", "db",
    }  # fmt: skip
    first = Anchors.load(bench.public.device)
    front = sign.sign_release(text(), bench.private, bench.public, later(0))
    found = verify(front, first, tmp_path / "device", RUNNING, later())
    assert found.signers == {made["openpgp"].lower()}

    for name in ("root-1", "targets-1", "snapshot-1", "timestamp-1"):
        assert bench.ok("rotate", name, "--no-passphrase")["missing"] == 0
    new = bench.ok("rotate", "openpgp", "--no-passphrase")["openpgp"]
    front = sign.sign_release(text(version="1.2.4", sequence=6), bench.private, bench.public, later(0))
    newer = Anchors.load(bench.public.device)
    for anchors, device in ((first, "device"), (first, "other"), (newer, "newer")):
        assert verify(front, anchors, tmp_path / device, RUNNING, later()).manifest.version == "1.2.4"
    assert verify(front, newer, tmp_path / "newer", RUNNING, later()).signers == {new.lower()}
    bench.refused("keys-threshold", "revoke", new)

    sign.withdraw("1.2.4", bench.private, bench.public, later(0))
    last = sign.sign_release(text(version="1.2.5", sequence=7), bench.private, bench.public, later(0))
    verify(last, newer, tmp_path / "newer", RUNNING, later())
    with pytest.raises(TrustError) as caught:
        verify(front, newer, tmp_path / "newer", RUNNING, later())
    assert caught.value.reason == "release-unlisted"


def test_root_keys_on_three_sticks(bench: Bench, tmp_path: Path):
    bench.ok("make", "--no-passphrase")
    for number in (1, 2, 3):
        bench.ok("export", f"root-{number}", "--move", "--to", tmp_path / f"s{number}")
    bench.refused("keys-missing", "export", "root-1", "--to", tmp_path / "s4")
    waiting = bench.ok("rotate", "timestamp-1", "--no-passphrase")
    assert waiting["missing"] == 2
    bench.refused("keys-pending", "rotate", "targets-1", "--no-passphrase")
    file = Path(waiting["file"])
    bench.refused("keys-missing", "sign", file)
    copies = []
    for number in (1, 2):  # a machine without the project, with the file and the root before it
        away = tmp_path / f"machine{number}"
        away.mkdir()
        for name, data in (
            ("2.root.json", file.read_bytes()),
            ("1.root.json", (bench.public.tuf / "1.root.json").read_bytes()),
        ):
            (away / name).write_bytes(data)
        bench.use(tmp_path / f"s{number}")
        assert bench.ok("sign", away / "2.root.json", root=away)["signed"] == [f"root-{number}"]
        copies.append(away / "2.root.json")
    bench.use(bench.private.folder)
    assert bench.ok("merge", file, copies[0])["missing"] == 1
    assert bench.public.root().signed.version == 1
    assert bench.ok("merge", file, copies[1])["missing"] == 0
    assert bench.public.root().signed.version == 2
    assert not file.exists()


def test_keys_that_are_elsewhere_sign_a_release_there(bench: Bench, tmp_path: Path):
    bench.ok("make", "--simple", "--no-passphrase")
    away = tmp_path / "away"
    bench.ok("export", "targets-1", "--move", "--to", away)
    bench.close()  # an agent knows its home by the name that it had
    (bench.private.folder / "openpgp").rename(away / "openpgp")
    with pytest.raises(KeysError) as caught:
        sign.sign_release(text(), bench.private, bench.public, later(0))
    assert caught.value.reason == "keys-pending"
    bench.use(away)
    bench.ok("sign", bench.public.pending / "1.targets.json")
    with pytest.raises(KeysError) as caught:
        sign.sign_release(text(), bench.private, bench.public, later(0))
    assert caught.value.reason == "keys-pending"
    bench.ok("sign", bench.public.pending / "1.2.3.json")
    front = sign.sign_release(text(), bench.private, bench.public, later(0))
    assert not list(bench.public.pending.iterdir())
    assert verify(front, Anchors.load(bench.public.device), tmp_path / "device", RUNNING, later())


def test_a_version_is_released_once(bench: Bench):
    bench.ok("make", "--simple", "--no-passphrase")
    sign.sign_release(text(), bench.private, bench.public, later(0))
    with pytest.raises(KeysError) as caught:
        sign.sign_release(text(sequence=6), bench.private, bench.public, later(0))
    assert caught.value.reason == "keys-released"
    assert sign.sign_release(text(), bench.private, bench.public, later(0))


def test_a_front_that_no_device_would_take_is_not_written(bench: Bench):
    bench.ok("make", "--simple", "--no-passphrase")
    other = gnupg.make(bench.private, "other")
    bench.public.write_signers(gnupg.export(bench.private, [other]), [other], 1)
    gnupg.revoke(bench.private, other)
    before = sorted(bench.folder.joinpath("keys").rglob("*"))
    with pytest.raises(TrustError) as caught:
        sign.sign_release(text(), bench.private, bench.public, later(0))
    assert caught.value.reason == "release-openpgp"
    assert sorted(bench.folder.joinpath("keys").rglob("*")) == before


def test_a_timestamp_is_renewed_before_it_ends(bench: Bench):
    bench.ok("make", "--simple", "--no-passphrase")
    bench.refused("keys-none", "renew")
    sign.sign_release(text(), bench.private, bench.public, later(0))
    assert bench.ok("renew")["renewed"] == ["timestamp"]
    assert sign.renew(bench.private, bench.public, later(300)) == ["snapshot", "timestamp"]


def test_a_passphrase_comes_by_a_descriptor_and_is_in_no_argument(bench: Bench, tmp_path: Path):
    bench.quick()
    for words in (("make", "--simple"), ("list",), ("rotate", "targets-1"), ("rotate", "openpgp")):
        reader, writer = os.pipe()
        os.write(writer, "correct: %horse äöü €\n".encode())
        os.close(writer)
        bench.ok(*words, *(() if words == ("list",) else ("--passphrase-fd", str(reader))))
        os.close(reader)
    for path in (bench.private.folder / "tuf").iterdir():
        assert b"ENCRYPTED" in path.read_bytes()
    kept = list((bench.private.folder / "openpgp" / "private-keys-v1.d").iterdir())
    assert len(kept) == 4
    assert all(b"protected-private-key" in path.read_bytes() for path in kept)


# -- what others say ---------------------------------------------------------------------------------------------------


class Ring:
    """Certificates made by GnuPG at times of one's choosing."""

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(mode=0o700)

    def gpg(self, *words: str, at: str = "20250101T000000", stdin: bytes = b"") -> bytes:
        quiet = ["--batch", "--no-tty", "--pinentry-mode", "loopback", "--passphrase", "", "--faked-system-time", at]
        return run(["gpg", "--homedir", str(self.home), *quiet, *words], stdin=stdin, split=True).stdout

    def make(self, name: str, ends: str = "never", subkey_ends: str = "never") -> str:
        self.gpg("--quick-gen-key", name, "ed25519", "cert", ends)
        fingerprint = self.fingerprints(name)[0]
        for _ in range(2):
            self.gpg("--quick-add-key", fingerprint, "ed25519", "sign", subkey_ends)
        return fingerprint

    def fingerprints(self, name: str) -> list[str]:
        listing = self.gpg("--with-colons", "--list-keys", name).decode()
        return [line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:")]

    def sign(self, data: Path, *keys: str, how: tuple[str, ...] = ()) -> Path:
        target = data.with_name(f"{'-'.join((*how, *keys)).replace('--', '')[:60]}.asc")
        users = [word for key in keys for word in ("-u", f"{key}!")]
        words = ("--armor", "-o", str(target), *users, *how, "--detach-sign", str(data))
        self.gpg(*words, at="20250301T000000")
        return target


def by_gpgv(ring: Path, signature: Path, data: Path) -> set[str]:
    """Primary fingerprints of good signatures by gpgv's status lines: EXPKEYSIG and REVKEYSIG are not GOODSIG."""
    words = [
        "gpgv",
        "--homedir",
        str(ring.parent),
        "--status-fd",
        "1",
        "--keyring",
        str(ring),
        str(signature),
        str(data),
    ]
    lines = run(words, split=True, allow=ANY_STATUS).text.splitlines()
    good, found = False, set()
    for line in lines:
        if re.match(r"\[GNUPG:\] (NEWSIG|GOODSIG|EXPSIG|EXPKEYSIG|REVKEYSIG|BADSIG|ERRSIG)", line):
            good = line.startswith("[GNUPG:] GOODSIG")
        elif line.startswith("[GNUPG:] VALIDSIG") and good:
            found.add(line.split()[-1].lower())
    return found


def by_sqv(ring: Path, signature: Path, data: Path) -> set[str]:
    done = run(["sqv", "--keyring", str(ring), str(signature), str(data)], split=True, allow=ANY_STATUS)
    return {line.lower() for line in done.text.splitlines()} if done.status == 0 else set()


def test_signatures_are_judged_as_gpgv_and_sqv_judge_them(tmp_path: Path):
    """Where the three differ it is on purpose, and said here: sqv takes what was valid when it was made."""
    ring = Ring(tmp_path / "g")
    data = tmp_path / "manifest"
    data.write_bytes(b"manifest")
    names = {
        "good": ring.make("good"),
        "expired": ring.make("expired", ends="2025-06-01"),
        "subkey expired": ring.make("subkey", subkey_ends="2025-06-01"),
        "revoked": ring.make("revoked"),
        "subkey revoked": ring.make("partly"),
        "stranger": ring.make("stranger"),
    }
    subkeys = {name: ring.fingerprints(fingerprint)[1:] for name, fingerprint in names.items()}
    files = {name: ring.sign(data, keys[0]) for name, keys in subkeys.items()}
    files["other subkey"] = ring.sign(data, subkeys["good"][1])
    files["unrevoked subkey"] = ring.sign(data, subkeys["subkey revoked"][1])
    files["two, one unknown"] = ring.sign(data, subkeys["stranger"][1], subkeys["good"][0])
    files["two of one"] = ring.sign(data, *subkeys["good"])
    good = subkeys["good"][0]
    files["weak hash"] = ring.sign(data, good, how=("--digest-algo", "SHA224"))
    files["over text"] = ring.sign(data, good, how=("--textmode",))
    files["signature expired"] = ring.sign(data, good, how=("--default-sig-expire", "2025-06-01"))
    files["other data"] = tmp_path / "other.asc"
    files["other data"].write_bytes(files["good"].read_bytes())

    revocation = (tmp_path / "g" / "openpgp-revocs.d" / f"{names['revoked']}.rev").read_text()
    ring.gpg("--import", stdin=("-----BEGIN" + revocation.split("\n:-----BEGIN", 1)[1]).encode())
    steps = b"key 1\nrevkey\ny\n2\n\ny\nsave\n"  # 2: superseded, so what it signed before is good to some
    ring.gpg("--command-fd", "0", "--edit-key", names["subkey revoked"], stdin=steps, at="20250401T000000")
    pins = [fingerprint for name, fingerprint in names.items() if name != "stranger"]
    binary, armored = tmp_path / "g" / "ring.gpg", tmp_path / "ring.asc"
    binary.write_bytes(ring.gpg("--export", *pins))
    armored.write_bytes(ring.gpg("--armor", "--export", *pins))
    pinned = openpgp.certificates(armored.read_bytes(), pins)

    found = {}
    for name, path in files.items():
        content = b"something else" if name == "other data" else b"manifest"
        data.write_bytes(content)
        ours = openpgp.judge(pinned, content, [path.read_text()], datetime.now(UTC)).certificates
        found[name] = (bool(ours), bool(by_gpgv(binary, path, data)), bool(by_sqv(armored, path, data)))
        assert ours <= {pin.lower() for pin in pins}
    assert found == {
        "good": (True, True, True),
        "other subkey": (True, True, True),
        "unrevoked subkey": (True, True, True),
        "two, one unknown": (True, True, True),
        "two of one": (True, True, True),
        "expired": (False, False, True),
        "subkey expired": (False, False, True),
        "revoked": (False, False, False),
        "subkey revoked": (False, False, True),
        "weak hash": (False, True, True),
        "over text": (False, True, True),
        "signature expired": (False, False, False),
        "stranger": (False, False, False),
        "other data": (False, False, False),
    }


def test_a_name_is_given_once(bench: Bench):
    bench.ok("make", "--no-passphrase")
    bench.ok("revoke", "root-3")
    (bench.private.folder / "tuf" / "root-3.pem").unlink()  # it was on a stick that somebody lost
    bench.ok("rotate", "root-2", "--no-passphrase")
    bench.private.write("tuf", "root-5.pem", ed25519.Ed25519PrivateKey.generate())
    bench.ok("rotate", "root-1", "--no-passphrase")  # a cut before had left that key, and no root that names it
    assert {row["name"] for row in bench.ok("list")["keys"] if row["kind"] == "root"} == {"root-4", "root-6"}


def test_an_old_openpgp_key_is_listed_as_long_as_it_signs(bench: Bench):
    old = bench.ok("make", "--simple", "--no-passphrase")["openpgp"]
    new = bench.ok("rotate", "openpgp", "--no-passphrase")["openpgp"]
    rows = [(row["id"], row["kind"]) for row in bench.ok("list")["keys"] if row["name"] == "openpgp"]
    assert rows == [(new, "openpgp"), (old, "older images")]
    bench.ok("revoke", old)
    assert [row["id"] for row in bench.ok("list")["keys"] if row["name"] == "openpgp"] == [new]


def test_what_signs_the_last_root_signs_the_list_as_well(bench: Bench, tmp_path: Path):
    bench.quick()

    def piped() -> int:
        reader, writer = os.pipe()
        os.write(writer, b"correct horse\n")
        os.close(writer)
        return reader

    def ok(*words: str | Path) -> dict[str, Any]:
        return bench.ok(*words, "--passphrase-fd", str(piped()))

    ok("make", "--simple")
    sign.sign_release(text(), Private(bench.private.folder, Passphrase(piped())), bench.public, later(0))
    bench.ok("export", "root-1", "--move", "--to", tmp_path / "stick")
    file = Path(ok("rotate", "timestamp-1")["file"])
    (tmp_path / "stick" / "tuf" / "root-1.pem").rename(bench.private.folder / "tuf" / "root-1.pem")
    assert ok("sign", file)["missing"] == 0
    assert bench.public.newest("timestamp").signed.version == 2


def test_a_mistake_changes_nothing(bench: Bench, tmp_path: Path):
    bench.ok("make", "--simple", "--no-passphrase")
    before = sorted(bench.folder.rglob("*"))
    bench.refused("keys-threshold", "revoke", "db")
    for words in (("sign", tmp_path / "nope.json"), ("rotate", "root-1", "--public", tmp_path)):
        error = bench.run(*words).exception
        assert isinstance(error, UsageError)
        assert error.hint
    bench.refused("keys-damaged", "rotate", "root-1", "--public", tmp_path / "mixos.toml")
    error = bench.run("sign", tmp_path / "mixos.toml").exception
    assert isinstance(error, ImageError)
    assert "mixos.toml" in error.message
    bench.refused("keys-missing", "export", "root-1", "nope", "--to", tmp_path / "stick")
    assert sorted(bench.folder.rglob("*")) == before
