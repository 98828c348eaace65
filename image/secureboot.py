"""Secure Boot on the host: signatures of what firmware starts, the files that enrol keys, and an image with both.

Signing is the last step and outside the content store, since a signature holds its time: the unsigned image stays
reproducible, and a signed file is checked to be the unsigned one but for its signature. `sbsign` and `openssl` make the
signatures, so a key may be where only OpenSSL's engines reach (PKCS #11).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from buildsys.files import data_ranges
from buildsys.run import find_tool, run
from common.disk import fatread, gpt
from common.efi import eventlog, measure, pe, pkcs7, siglist
from common.efi import uki as uki_format
from common.efi.entries import FOLDER
from common.errors import ImageError
from image import esp
from image.host import copy_range, image_errors, opened

ENROLMENT = "loader/keys/auto"  # the one set of keys that systemd-boot enrols by itself (loader.conf(5))
_SIGN_SECONDS = 120.0
_TOKEN = ("PKCS11_*", "SOFTHSM2_CONF")  # which library reaches a token, and its configuration


@dataclass(frozen=True)
class Signer:
    """certificate: PEM. key: PEM, not encrypted (it is handed on in memory, never in a file), or where a token has it:
    a URI "pkcs11:...", for which OpenSSL's engine "pkcs11" must be installed (libengine-pkcs11-openssl)."""

    certificate: bytes
    key: bytes | str

    @property
    def der(self) -> bytes:
        """The certificate as databases hold it. Raises ImageError."""
        try:
            return x509.load_pem_x509_certificate(self.certificate).public_bytes(Encoding.DER)
        except ValueError as error:
            raise ImageError("a certificate for Secure Boot is no PEM file", reason="secureboot-certificate") from error

    @contextmanager
    def files(self) -> Iterator[tuple[str, str, tuple[int, ...]]]:
        """What tools are told of the certificate and of the key, and the descriptors that they inherit for it."""
        with _in_memory(self.certificate) as certificate:
            if isinstance(self.key, str):
                yield f"/dev/fd/{certificate}", self.key, (certificate,)
                return
            with _in_memory(self.key) as key:
                yield f"/dev/fd/{certificate}", f"/dev/fd/{key}", (certificate, key)


@contextmanager
def _in_memory(content: bytes) -> Iterator[int]:
    descriptor = os.memfd_create("mixos-secureboot", os.MFD_CLOEXEC)
    try:
        os.write(descriptor, content)
        yield descriptor
    finally:
        os.close(descriptor)


# --- images -----------------------------------------------------------------------------------------------------------


def sign(image: bytes, signer: Signer) -> bytes:
    """A signed image. Raises ImageError when it has a signature already, or the result is another image."""
    if pe.parse(image).signed:
        raise ImageError("an image that is signed already is not signed again", reason="secureboot-signed")
    with tempfile.TemporaryDirectory(prefix="mixos-sign-") as folder, signer.files() as (certificate, key, passed):
        given, made = Path(folder, "given"), Path(folder, "made")
        given.write_bytes(image)
        engine = ["--engine", "pkcs11"] if isinstance(signer.key, str) else []
        argv: list[str | Path] = [find_tool("sbsign"), *engine, "--key", key, "--cert", certificate]
        run([*argv, "--output", made, given], pass_fds=passed, inherit=_TOKEN, timeout=_SIGN_SECONDS)
        signed = made.read_bytes()
    check_signed(image, signed, signer)
    return signed


def check_signed(image: bytes, signed: bytes, signer: Signer) -> None:
    """Raise ImageError unless `signed` is `image` but for one signature that carries the signer's certificate. Whether
    the signature is right is told by `verify`."""
    if pe.unsigned(signed) != pe.unsigned(image):
        raise ImageError("the signed image is not the image that was to be signed", reason="secureboot-other")
    found = pe.signatures(signed)
    if len(found) != 1 or signer.der not in [one.data for one in pkcs7.certificates(found[0])]:
        raise ImageError("the signature of an image is not by the key that was asked for", reason="secureboot-signer")
    verify(signed, signer.certificate)


def verify(image: bytes, certificate: bytes) -> None:
    """Check the signature of an image against a certificate (PEM) by sbverify. Raises ImageError."""
    with tempfile.TemporaryDirectory(prefix="mixos-verify-") as folder, _in_memory(certificate) as descriptor:
        given = Path(folder, "given")
        given.write_bytes(image)
        argv: list[str | Path] = [find_tool("sbverify"), "--cert", f"/dev/fd/{descriptor}", given]
        if run(argv, pass_fds=(descriptor,), allow=range(256), timeout=_SIGN_SECONDS).status:
            raise ImageError("the signature of an image is missing or not by this key", reason="secureboot-signature")


def with_policy(uki: bytes, signer: Signer) -> bytes:
    """A unified kernel image that carries a signed TPM policy for PCR 11 as the stub leaves it (UAPI.5, `.pcrpkey` and
    `.pcrsig`): what is sealed to the key opens for every image that it signs, and for no other. The key is RSA, and
    another one than that of db. To be signed for Secure Boot after this. Raises ImageError."""
    public = x509.load_pem_x509_certificate(signer.certificate).public_key()
    if not isinstance(public, rsa.RSAPublicKey):
        raise ImageError("the key of a TPM policy is no RSA key", reason="secureboot-certificate")
    uki = pe.append(uki, [(".pcrpkey", public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))])
    digest = measure.policy(measure.pcr(uki))
    words = ["dgst", "-sha256", *(["-engine", "pkcs11", "-keyform", "engine"] if isinstance(signer.key, str) else [])]
    with signer.files() as (_, key, passed):
        argv: list[str | Path] = [find_tool("openssl"), *words, "-sign", key]
        signature = run(argv, stdin=digest, pass_fds=passed, split=True, inherit=_TOKEN, timeout=_SIGN_SECONDS).stdout
    public.verify(signature, digest, padding.PKCS1v15(), hashes.SHA256())
    fingerprint = hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.PKCS1)).hexdigest()
    entry = {
        "pcrs": [measure.PCR],
        "pkfp": fingerprint,
        "pol": digest.hex(),
        "sig": base64.b64encode(signature).decode(),
    }
    return pe.append(uki, [(".pcrsig", json.dumps({"sha256": [entry]}, separators=(",", ":")).encode())])


# --- keys -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Keys:
    """owner: the GUID under which our certificates lie in databases."""

    pk: Signer
    kek: Signer
    db: Signer
    owner: UUID

    def entry(self, signer: Signer) -> siglist.Signature:
        """Its certificate as an entry of a database."""
        return siglist.Signature(siglist.X509, self.owner, signer.der)


@dataclass(frozen=True)
class Vendors:
    """Entries of the machine's maker and of Microsoft that stay: without Microsoft's, cards with option ROMs do not
    start. Read them from a machine's variables (siglist.read_variable) or files of certificates."""

    kek: tuple[siglist.Signature, ...] = ()
    db: tuple[siglist.Signature, ...] = ()


def update(
    name: str, signatures: Sequence[siglist.Signature], signer: Signer, time: datetime, *, append: bool = False
) -> bytes:
    """An `.auth` file: the signed new content of a variable, or what is appended to it. Firmware takes a new content
    only if its time is later than that of the last one. Raises ImageError."""
    content = siglist.to_be_signed(name, signatures, time, append=append)
    with tempfile.TemporaryDirectory(prefix="mixos-sign-") as folder, signer.files() as (certificate, key, passed):
        made = Path(folder, "made")
        engine = ["-engine", "pkcs11", "-keyform", "engine"] if isinstance(signer.key, str) else []
        argv: list[str | Path] = [find_tool("openssl"), "smime", "-sign", "-binary", "-noattr", "-md", "sha256"]
        argv += [*engine, "-inkey", key, "-signer", certificate, "-outform", "DER", "-out", made]
        run(argv, stdin=content, pass_fds=passed, inherit=_TOKEN, timeout=_SIGN_SECONDS)
        signature = pkcs7.signed_data(made.read_bytes())
    return siglist.write_update(siglist.Update(time, signature, tuple(signatures)))


def check_replacement(event_log: bytes | None, *, certain: bool) -> None:
    """Whether a machine's own keys may be left out. event_log: of a machine of the kind that the image is for. certain:
    said by a person who knows that nothing in it needs them.

    Raises ImageError `secureboot-option-roms` or `secureboot-replace`.
    """
    if event_log is not None:
        count = eventlog.option_roms(event_log)
        if count:
            raise ImageError(
                f"firmware of this machine started {count} option ROMs, signed by Microsoft or its maker: without "
                " their certificates it may be left without a screen, or not start at all",
                reason="secureboot-option-roms",
                hint="keep the certificates that its db and KEK hold",
            )
    elif not certain:
        raise ImageError(
            "only our own certificates would be enrolled; a machine with option ROMs does not start with them",
            reason="secureboot-replace",
            hint="keep the machine's certificates, or give its event log (/sys/kernel/security/tpm0/"
            "binary_bios_measurements); virtual machines have no option ROMs",
        )


def enrolment(
    keys: Keys,
    time: datetime,
    vendors: Vendors | None = None,
    *,
    event_log: bytes | None = None,
    certain: bool = False,
) -> dict[str, bytes]:
    """The files that systemd-boot enrols in setup mode: path on the ESP → bytes. vendors: what stays in KEK and db.
    Without any in db, event_log and certain as in `check_replacement`, whose errors are raised."""
    kept = vendors or Vendors()
    if not kept.db:
        check_replacement(event_log, certain=certain)
    lists = {
        "PK": ((keys.entry(keys.pk),), keys.pk),
        "KEK": (siglist.merged((keys.entry(keys.kek),), kept.kek), keys.pk),
        "db": (siglist.merged((keys.entry(keys.db),), kept.db), keys.kek),
    }
    return {f"{ENROLMENT}/{name}.auth": update(name, content, by, time) for name, (content, by) in lists.items()}


# --- the signed image -------------------------------------------------------------------------------------------------


def sign_disk(
    image: Path,
    signed: Path,
    signer: Signer,
    files: Mapping[str, bytes],
    epoch: int,
    *,
    policy: Signer | None = None,
    force: bool = False,
) -> None:
    """Make a signed disk image from an unsigned one: the boot manager and the unified kernel images on its ESPs are
    signed, `files` (from `enrolment`) are added to the first, and nothing else differs.

    epoch: time of the files on the ESP, seconds. policy: whose TPM policy the unified kernel images get. force: also
    hardware enrols by itself in setup mode, after 15 seconds; else only virtual machines do, and hardware asks at the
    menu. Raises ImageError.
    """
    fresh = signed.with_name(signed.name + ".new")
    try:
        with opened(image) as source, opened(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC) as target, image_errors(image):
            length = os.fstat(source).st_size
            os.truncate(target, length)
            for start, end in data_ranges(source, length):
                copy_range(source, target, start, end, start)
            table = gpt.read(target)
            for name, added in ((esp.NAME, files), (esp.SECOND, {})):
                part = table.find(name)
                contents = {**signed_files(esp.read(target, part), signer, policy=policy, force=force), **added}
                volume = fatread.open_volume(target, part.offset, part.size)
                esp.write(target, part, contents, volume.volume_id, epoch)
            os.fsync(target)
        fresh.replace(signed)
    finally:
        fresh.unlink(missing_ok=True)


def signed_files(
    contents: Mapping[str, bytes], signer: Signer, *, policy: Signer | None = None, force: bool = False
) -> dict[str, bytes]:
    """The files of an ESP, those that firmware and the boot manager start signed. Raises ImageError."""
    by_content: dict[bytes, bytes] = {}
    found = dict(contents)
    for path, data in contents.items():
        if path.lower().startswith("efi/") and path.lower().endswith(".efi"):
            if data not in by_content:
                # The rescue entry has no policy: who is at the console does not get what is sealed for the device.
                slot = path.startswith(f"{FOLDER}/") and uki_format.read_uki(data).root_hash is not None
                by_content[data] = sign(with_policy(data, policy) if policy and slot else data, signer)
            found[path] = by_content[data]
    if not by_content:
        raise ImageError("the ESP holds nothing that could be signed", reason="secureboot-empty")
    enrol = f"secure-boot-enroll {'force' if force else 'if-safe'}\n"
    found["loader/loader.conf"] = contents["loader/loader.conf"] + enrol.encode()
    return found
