"""The OpenPGP key of releases, in a GNUPGHOME of its own: GnuPG makes it and signs with it, a smart card's as well.

A passphrase that comes from a descriptor goes to GnuPG through a pipe; otherwise its agent asks for it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gnupg

from buildsys.keys.private import Private
from buildsys.run import ANY_STATUS, find_tool, run
from common.errors import KeysError
from common.safe import one_line

EXPIRES = "5y"


@contextmanager
def opened(private: Private) -> Iterator[Any]:
    """GnuPG on its folder, by a short way: its agent's socket lies beside the keys, and unix(7) has 108 bytes for the
    path of one. The agent ends with this. Raises HostError `tool-missing`."""
    with tempfile.TemporaryDirectory(prefix="gpg-") as short:
        home = Path(short) / "home"
        home.symlink_to(private.folder_of("openpgp").absolute())
        gpg = gnupg.GPG(gpgbinary=str(find_tool("gpg")), gnupghome=str(home))
        gpg.encoding = "utf-8"
        try:
            yield gpg
        finally:
            run(["gpgconf", "--homedir", str(home), "--kill", "all"], allow=ANY_STATUS)


def make(private: Private, name: str) -> str:
    """A new certificate: a primary key that certifies, a subkey that signs. Its fingerprint."""
    secret = private.secret
    protection: dict[str, Any] = {"passphrase": secret} if secret else {"no_protection": True}
    with opened(private) as gpg:
        wanted = gpg.gen_key_input(
            key_type="EDDSA",
            key_curve="ed25519",
            key_usage="cert",
            subkey_type="EDDSA",
            subkey_curve="ed25519",
            subkey_usage="sign",
            name_real=name,
            name_email="release@invalid",
            expire_date=EXPIRES,
            **protection,
        )
        made = gpg.gen_key(wanted)
    if not made.fingerprint:
        raise KeysError(f"GnuPG made no key: {_said(made)}", reason="keys-openpgp")
    return str(made.fingerprint)


def held(private: Private) -> dict[str, str]:
    """Fingerprint of each certificate whose private part is here, and its name; no expired ones, no revoked ones."""
    if not (private.folder / "openpgp").exists():
        return {}
    with opened(private) as gpg:
        return {
            str(key["fingerprint"]): str(key["uids"][0]) if key["uids"] else ""
            for key in gpg.list_keys(secret=True)
            if key["trust"] not in ("r", "e", "d", "i")
        }


def export(private: Private, fingerprints: list[str]) -> str:
    """Certificates, armored. Raises KeysError `keys-openpgp` when one is not there."""
    with opened(private) as gpg:
        found: str = gpg.export_keys(fingerprints, minimal=True)
        if len(gpg.scan_keys_mem(found)) != len(set(fingerprints)):
            raise KeysError("GnuPG does not have all of these certificates", reason="keys-openpgp")
    return found


def sign(private: Private, text: str, fingerprint: str) -> str:
    """An armored detached signature over a text. Raises KeysError `keys-openpgp`."""
    secret = private.passphrase.get("the release key") if private.passphrase.given else None
    with opened(private) as gpg:
        made = gpg.sign(
            text,
            keyid=fingerprint,
            detach=True,
            clearsign=False,
            passphrase=secret,
            extra_args=["--digest-algo", "SHA512"],
        )
    if not made.data:
        raise KeysError(f"GnuPG did not sign with {fingerprint}: {_said(made)}", reason="keys-openpgp")
    return bytes(made.data).decode("ascii")


def revoke(private: Private, fingerprint: str) -> None:
    """Revoke a certificate with the revocation that GnuPG has made along with it; a leading colon keeps that from being
    used by mistake. Raises KeysError `keys-missing`."""
    path = private.folder / "openpgp" / "openpgp-revocs.d" / f"{fingerprint}.rev"
    if not path.is_file():
        raise KeysError(f"there is no revocation of {fingerprint} in {path.parent}", reason="keys-missing")
    armor = path.read_text(encoding="utf-8").split("\n:-----BEGIN", 1)[-1]
    with opened(private) as gpg:
        done = gpg.import_keys(f"-----BEGIN{armor}")
    if not done.counts:
        raise KeysError(f"GnuPG did not take the revocation: {_said(done)}", reason="keys-openpgp")


def _said(result: Any) -> str:
    lines = [line for line in str(getattr(result, "stderr", "")).splitlines() if line.startswith("gpg:")]
    return one_line(lines[-1] if lines else "it gave no reason")


def read_signature(path: Path) -> str:
    """A file with an armored signature."""
    return path.read_text(encoding="ascii", errors="replace")
