"""Public SSH keys as they stand in authorized_keys: a syntax check that needs no ssh-keygen, and the written line.

Format: algorithm, base64 of the key blob, comment (RFC 4253 section 6.6, RFC 5656, RFC 8709, PROTOCOL.u2f). Options
before the algorithm are refused: an image-wide list of keys is no place for `command=` or `environment=`. What may
limit a key has names of its own, and is written as sshd(8), AUTHORIZED_KEYS FILE FORMAT, wants it.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Sequence

from common import addresses

MAX_LENGTH = 8192
_MIN_RSA_BITS = 2048

# Algorithm → number of length-prefixed fields in the blob, the algorithm's own name included.
_FIELDS = {
    "ssh-ed25519": 2,
    "ssh-rsa": 3,
    "ecdsa-sha2-nistp256": 3,
    "ecdsa-sha2-nistp384": 3,
    "ecdsa-sha2-nistp521": 3,
    "sk-ssh-ed25519@openssh.com": 3,
    "sk-ecdsa-sha2-nistp256@openssh.com": 4,
}

OPTIONS = ("no-pty", "verify-required")

_WILDCARD = re.compile(r"[0-9A-Fa-f.:*?]{1,64}")
_PREFIX = re.compile(r"[^/]*(/[0-9]{1,3})?")  # sshd knows no netmasks
_DAY = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")


def line(key: str, terminal: bool, sources: Sequence[str], expires: str, options: Sequence[str]) -> str:
    """The line of authorized_keys, without newline; the arguments were checked by the functions below.

    terminal: whether the account may have one at all. Every key starts from `restrict`, which also covers what later
    releases of OpenSSH learn to forward.
    """
    words = ["restrict"]
    if terminal and "no-pty" not in options:
        words.append("pty")
    if "verify-required" in options:
        words.append("verify-required")
    if sources:
        words.append(f'from="{",".join(sources)}"')
    if expires:
        words.append(f'expiry-time="{expires.replace("-", "")}Z"')
    return f"{','.join(words)} {key}"


def source_problem(sources: Sequence[str]) -> str | None:
    """What is wrong with the addresses that a key may come from, as a phrase, or None.

    Addresses, networks, or addresses with `*` and `?`, each after an optional `!`. No names: the server asks no DNS.
    """
    for pattern in sources:
        text = pattern.removeprefix("!")
        try:
            addresses.network(text)
        except ValueError as error:
            if "/" in text and "host bits" in str(error):
                return f"{pattern!r} has bits set behind the prefix length"
            if not _WILDCARD.fullmatch(text) or not set(text) & set("*?"):
                return f"{pattern!r} is not an address, a network such as 10.0.0.0/8, or an address with * and ?"
        if "%" in text or not _PREFIX.fullmatch(text):
            return f"{pattern!r} has an interface or a netmask; write a prefix length"
    if all(pattern.startswith("!") for pattern in sources):
        return "names no address that is let in, so the key could never be used"
    return None


def expiry_problem(day: str) -> str | None:
    """What is wrong with the day on which a key stops to work, as a phrase, or None."""
    from datetime import date

    found = _DAY.fullmatch(day)
    try:
        date(*(int(part) for part in found.groups())) if found else None
    except ValueError:
        found = None
    return None if found else f"{day!r} is not a day such as 2027-01-01"


def option_problem(options: Sequence[str], key: str) -> str | None:
    """What is wrong with the further options of a key, as a phrase, or None."""
    for option in options:
        if option not in OPTIONS:
            return f"{option!r} is not an option (known: {', '.join(OPTIONS)})"
    if "verify-required" in options and not key.startswith("sk-"):
        return "verify-required is for security keys (sk-…)"
    return None


def normal_key(text: str) -> str:
    """A public key as people paste it, with one blank between its words; anything of several lines as it is."""
    text = text.strip()
    return " ".join(text.split(None, 2)) if "\n" not in text and "\r" not in text else text


def key_problem(key: str) -> str | None:
    """What is wrong with a public key line, as a phrase, or None."""
    if not key:
        return "the key is missing"
    if "PRIVATE KEY" in key:
        return "this is a private key; give the public one (the .pub file)"
    if "BEGIN SSH2 PUBLIC KEY" in key or "BEGIN PUBLIC KEY" in key or "BEGIN RSA PUBLIC KEY" in key:
        return "is in another format; ssh-keygen -i -f FILE (with -m PKCS8 or -m PEM) writes it as OpenSSH does"
    if len(key) > MAX_LENGTH or any(ord(char) < 0x20 or ord(char) == 0x7F for char in key):
        return "must be one line of text"
    algorithm, _, rest = key.partition(" ")
    if algorithm not in _FIELDS:
        return f"unknown algorithm {algorithm[:40]!r}; expected {', '.join(_FIELDS)}"
    try:
        blob = base64.b64decode(rest.split(" ", 1)[0], validate=True)
    except (binascii.Error, ValueError):
        return "the key data is not base64"
    fields = _split(blob)
    if fields is None or len(fields) != _FIELDS[algorithm] or fields[0] != algorithm.encode():
        return "the key data is damaged or belongs to another algorithm"
    if "ed25519" in algorithm and len(fields[1]) != 32:
        return "an ed25519 key has 32 bytes"
    if algorithm == "ssh-rsa" and int.from_bytes(fields[2]).bit_length() < _MIN_RSA_BITS:
        return f"an RSA key needs at least {_MIN_RSA_BITS} bits"
    return None


def _split(blob: bytes) -> list[bytes] | None:
    """The length-prefixed strings of a blob (RFC 4251 section 5), or None when it does not divide into them."""
    fields = []
    while blob:
        length = int.from_bytes(blob[:4])
        if len(blob) < 4 + length or not length:
            return None
        fields.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    return fields
