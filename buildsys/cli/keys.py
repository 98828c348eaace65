"""mixos keys"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from buildsys.cli.context import Command, Context, emit, json_option, named_file, pass_context
from common.errors import KeysError, MixosError, UsageError

OPENPGP = "openpgp"
_MAX_KEY = 64 << 10  # bytes of a public key


def passphrase_option(command: Command) -> Command:
    """--passphrase-fd."""
    return click.option(
        "--passphrase-fd",
        type=click.IntRange(0, 1023),
        help="Read the passphrase from this descriptor, not the terminal.",
    )(command)


@click.group()
def keys() -> None:
    """Make, list, replace and use the keys that sign releases.

    Example: mixos keys make · mixos keys list · mixos keys sign keys/pending/2.root.json
    """


def private_keys(context: Context, passphrase_fd: int | None = None, *, none: bool = False) -> Any:
    """The folder with the private keys of this project's image."""
    from buildsys.keys.private import Passphrase, Private, default_folder

    config = context.root / "mixos.toml"
    image = context.project.config.image.name if context.config or config.exists() else "mixos"
    return Private(default_folder(image), Passphrase(passphrase_fd, none=none))


def public_keys(context: Context) -> Any:
    """The folder with what is public of them."""
    from buildsys.keys.public import Public

    return Public(context.project.keys)


def release_keys(context: Context) -> Any:
    """The same, where something is to be released. Raises KeysError `keys-none`."""
    public = public_keys(context)
    if not public.exists:
        hint = "make them: mixos keys make; then build the image again, so that its devices know them"
        raise KeysError(f"{public.folder} has no keys to release with", reason="keys-none", hint=hint)
    return public


@keys.command()
@click.option("--simple", is_flag=True, help="One root key instead of three of which two must sign.")
@click.option("--no-passphrase", is_flag=True, help="Leave the private keys unencrypted.")
@passphrase_option
@json_option
@pass_context
def make(context: Context, simple: bool, no_passphrase: bool, passphrase_fd: int | None, as_json: bool) -> None:
    """Make every key of a project: TUF, OpenPGP, Secure Boot. Example: mixos keys make"""
    from buildsys.keys import openpgp, secureboot, tuf

    private, public = private_keys(context, passphrase_fd, none=no_passphrase), public_keys(context)
    if public.exists:
        raise KeysError(f"{public.folder} has keys already", reason="keys-there", hint="mixos keys rotate replaces one")
    for kind in ("tuf", "secureboot"):
        if private.names(kind):
            hint = "name another folder by MIXOS_KEYS, or move these away"
            raise KeysError(f"{private.folder} holds private keys already", reason="keys-there", hint=hint)
    now, image = tuf.utc_now(), context.project.config.image.name
    root = tuf.make_root(private, simple=simple, now=now)  # first, so that a passphrase that is none leaves no folders
    public.make()
    secureboot.make(private, public, image, now)
    fingerprint = openpgp.make(private, f"{image} releases")
    public.write_signers(openpgp.export(private, [fingerprint]), [fingerprint], 1)
    public.adopt_root(root)
    text = f"made; private parts in {private.folder}, public ones in {public.folder}: commit these, guard those"
    if not simple:
        text += "\nnow move two of the three root keys to other places: mixos keys export root-2 --move --to FOLDER"
    emit({"private": str(private.folder), "public": str(public.folder), "openpgp": fingerprint}, as_json, text)


@keys.command(name="list")
@json_option
@pass_context
def list_keys(context: Context, as_json: bool) -> None:
    """List keys, which private parts are here, and what expires when. Example: mixos keys list --json"""
    from buildsys.keys import openpgp, payload, secureboot, tuf

    private, public = private_keys(context), public_keys(context)
    root = public.root().signed
    rows = [{"name": k.name, "kind": k.role, "id": k.keyid, "here": k.here} for k in tuf.held(root, private)]
    here = openpgp.held(private)
    policy = public.policy().openpgp
    rows += [{"name": OPENPGP, "kind": OPENPGP, "id": one, "here": one in here} for one in policy.signers]
    rows += [{"name": OPENPGP, "kind": "older images", "id": one, "here": True} for one in here.keys() - policy.signers]
    kept = private.names("secureboot")
    rows += [
        {"name": path.stem, "kind": "secure boot", "id": path.name, "here": path.stem in kept}
        for path in sorted(public.secureboot.glob("*.pem"))
    ]
    secrets = private.files(payload.KIND)
    rows += [{"name": one.stem, "kind": "encryption", "id": one.name, "here": True} for one in secrets]
    newest = {role: public.newest(role) for role in ("targets", "snapshot", "timestamp")}
    expires = {"root": root.expires} | {role: one.signed.expires for role, one in newest.items() if one}
    added = [one.name for one in secureboot.read_additions(public)]
    data: dict[str, Any] = {
        "keys": rows,
        "additions": added,
        "thresholds": {role: root.roles[role].threshold for role in tuf.ROLES} | {OPENPGP: policy.threshold},
        "expires": {role: f"{when:%Y-%m-%dT%H:%M:%SZ}" for role, when in expires.items()},
        "pending": sorted(path.name for path in public.pending.glob("*")),
    }
    lines = [f"{r['name']:<14} {r['kind']:<12} {'here' if r['here'] else 'elsewhere':<10} {r['id']}" for r in rows]
    now = tuf.utc_now()
    lines += [f"{role:<14} {'expires' if now < when else 'EXPIRED'} {when:%Y-%m-%d}" for role, when in expires.items()]
    lines += [f"added to devices: {name}" for name in added]
    lines += [f"pending: {name}" for name in data["pending"]]
    emit(data, as_json, "\n".join(lines))


def _names(ctx: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """What a shell completes the name of a key to: those of the newest root, "openpgp"; to be replaced also what Secure
    Boot's are called, to be revoked also who signs. Nothing where there are no keys, or none that can be read."""
    from buildsys.cli.main import context_of
    from buildsys.keys import secureboot, tuf

    try:
        public = public_keys(context_of(**ctx.find_root().params))
        names = [tuf.name_of(key) for key in public.root().signed.keys.values()]
        more = public.policy().openpgp.signers if ctx.info_name == "revoke" else secureboot.ROLES
    except (MixosError, OSError):
        return []
    return sorted(name for name in (*names, OPENPGP, *more) if name.startswith(incomplete))


@keys.command()
@click.argument("name", shell_complete=_names)
@click.option(
    "--public", "pem", type=click.Path(path_type=Path), help="Public key (PEM) of one that is kept elsewhere."
)
@click.option("--no-passphrase", is_flag=True, help="Leave the new private key unencrypted.")
@passphrase_option
@json_option
@pass_context
def rotate(
    context: Context, name: str, pem: Path | None, no_passphrase: bool, passphrase_fd: int | None, as_json: bool
) -> None:
    """Replace a key: one of TUF, "openpgp", or one of Secure Boot. Example: mixos keys rotate targets-1"""
    from buildsys.keys import openpgp, secureboot, tuf

    private, public = private_keys(context, passphrase_fd, none=no_passphrase), public_keys(context)
    now, image = tuf.utc_now(), context.project.config.image.name
    if pem is not None and (name == OPENPGP or name in secureboot.ROLES):
        raise UsageError("--public is for keys of TUF", reason="usage")
    if name == OPENPGP:
        policy = public.policy().openpgp
        new = openpgp.make(private, f"{image} releases")
        signers = [new, *policy.signers[1:]]
        public.write_signers(openpgp.export(private, signers), signers, policy.threshold)
        text = (
            f"images trust {new} from now on; the old key stays and signs too, for devices that do not know the new one"
        )
        emit({"openpgp": new, "signers": signers}, as_json, text)
    elif name in secureboot.ROLES:
        new = secureboot.next_name(private, public, name)
        secureboot.make_one(private, public, name, new, image, now)
        how = "" if name == "PK" else f": mixos keys enrol {new}"
        emit({"secureboot": new}, as_json, f"made {new}; it counts when devices have enrolled it{how}")
    else:
        root = public.root()
        _nothing_pending(public, root.signed.version + 1)
        tuf.replace_key(
            root.signed, name, tuf.same_key(root.signed, name), now
        )  # a mistake is told before a key is made
        new = tuf.next_name(public.names() | private.names("tuf"), name)
        key = tuf.foreign_key(named_file(pem, _MAX_KEY), new) if pem else tuf.new_key(private, new)
        _next_root(
            tuf.replace_key(root.signed, name, key, now), private, public, as_json, f"{new} takes the place of {name}"
        )


def by_option(command: Command) -> Command:
    """--by."""
    text = "The key of Secure Boot that signs this; default: KEK (PK, for a KEK)."
    return click.option("--by", metavar="KEY", help=text)(command)


@keys.command()
@click.argument("name", shell_complete=_names)
@by_option
@passphrase_option
@json_option
@pass_context
def enrol(context: Context, name: str, by: str | None, passphrase_fd: int | None, as_json: bool) -> None:
    """Have images add a certificate of Secure Boot to the db or KEK of devices that run them.

    Example: mixos keys rotate db && mixos keys enrol db-2
    """
    from buildsys.keys import secureboot, tuf

    private, public = private_keys(context, passphrase_fd), public_keys(context)
    _emit_addition(secureboot.enrol(private, public, name, by, tuf.utc_now()), as_json)


def _emit_addition(made: Any, as_json: bool) -> None:
    text = f"{made.name} is in the images that are built from now on: commit it"
    emit({"addition": made.name, "variable": made.variable}, as_json, text)


@keys.command()
@click.argument("name", metavar="NAME|IMAGE.efi", shell_complete=_names)
@by_option
@passphrase_option
@json_option
@pass_context
def revoke(context: Context, name: str, by: str | None, passphrase_fd: int | None, as_json: bool) -> None:
    """Take a key away without another in its place. Of Secure Boot: have images add a certificate of db, or the hash of
    a kernel image, to the dbx of devices.

    Example: mixos keys revoke root-3 · mixos keys revoke out/mixos-1.0.0-x86_64.efi
    """
    from buildsys.keys import secureboot, tuf

    image = name.lower().endswith(".efi")
    if image or secureboot.NAME.fullmatch(name):
        private, public = private_keys(context, passphrase_fd), public_keys(context)
        if image:
            made = secureboot.revoke_image(private, public, Path(name), by, tuf.utc_now())
        else:
            made = secureboot.revoke(private, public, name, by, tuf.utc_now())
        _emit_addition(made, as_json)
        return
    if by is not None:
        raise UsageError("--by is for what Secure Boot revokes", reason="usage")
    _revoke(context, name, passphrase_fd, as_json)


def _revoke(context: Context, name: str, passphrase_fd: int | None, as_json: bool) -> None:
    """A key of TUF or OpenPGP."""
    from buildsys.keys import openpgp, tuf

    private, public = private_keys(context, passphrase_fd), public_keys(context)
    policy = public.policy().openpgp
    if (public.secureboot / f"{name}.pem").exists():
        message = f"{name} is a certificate of Secure Boot: firmware refuses it when its dbx says so"
        raise UsageError(message, reason="usage", hint='docs/secureboot.md, "Revoke, and change keys"')
    fingerprint = policy.signers[0] if name == OPENPGP else name.upper()
    if fingerprint not in openpgp.held(private) and fingerprint not in policy.signers:
        root = public.root().signed
        _next_root(tuf.replace_key(root, name, None, tuf.utc_now()), private, public, as_json, f"{name} is revoked")
        return
    signers = [one for one in policy.signers if one != fingerprint]
    if len(signers) < policy.threshold:
        hint = "make another first: mixos keys rotate openpgp"
        raise KeysError(f"without {fingerprint} too few would sign releases", reason="keys-threshold", hint=hint)
    openpgp.revoke(private, fingerprint)
    public.write_signers(openpgp.export(private, signers), signers, policy.threshold)
    emit(
        {"revoked": fingerprint, "signers": signers}, as_json, f"{fingerprint} is revoked, and images trust it no more"
    )


def _next_root(root: Any, private: Any, public: Any, as_json: bool, done: str) -> None:
    """Sign the next root with what is here: it is in force when that is enough, else it waits for the others."""
    from tuf.api.metadata import Metadata

    from buildsys.files import atomic_write
    from buildsys.keys import tuf
    from buildsys.keys.public import dump, name_of

    metadata, previous = Metadata(root), public.root().signed
    waiting = public.pending / name_of(metadata)
    _nothing_pending(public, root.version)
    tuf.sign_root(metadata, previous, private)
    lacking = tuf.missing(metadata, previous)
    if lacking:
        atomic_write(waiting, dump(metadata))
        done += f" once {waiting} has {lacking} more signatures: take it to the other keys (mixos keys sign)"
    else:
        done += _in_force(metadata, private, public)
    emit({"root": root.version, "missing": lacking, "file": str(waiting) if lacking else None}, as_json, done)


def _in_force(metadata: Any, private: Any, public: Any) -> str:
    """Make a root that is complete the newest, and have the list of releases signed by the keys that it names."""
    from buildsys.keys import sign as releases
    from buildsys.keys import tuf

    public.adopt_root(metadata)
    if public.newest("timestamp") is None:
        return ""
    try:
        return f"; signed anew: {', '.join(releases.renew(private, public, tuf.utc_now()))}"
    except KeysError as error:
        return f"; devices refuse the list of releases until it is signed anew (mixos keys renew): {error.message}"


def _nothing_pending(public: Any, version: int) -> None:
    """Raise KeysError `keys-pending` when a root of that version waits for signatures."""
    waiting = public.pending / f"{version}.root.json"
    if waiting.exists():
        hint = "complete it, or remove the file"
        raise KeysError(f"{waiting} waits for signatures", reason="keys-pending", hint=hint)


@keys.command()
@click.argument("names", nargs=-1, required=True)
@click.option("--to", "target", required=True, type=click.Path(path_type=Path), help="The folder, on a stick say.")
@click.option("--move", is_flag=True, help="Remove them here.")
@json_option
@pass_context
def export(context: Context, names: tuple[str, ...], target: Path, move: bool, as_json: bool) -> None:
    """Copy private keys elsewhere, encrypted as they are.

    Example: mixos keys export root-2 --move --to /media/stick
    """
    from buildsys.keys import payload

    private = private_keys(context)
    kinds = ("tuf", "secureboot", payload.KIND)
    there = {path.stem: (kind, path.name) for kind in kinds for path in private.files(kind)}
    missing = [name for name in names if name not in there]
    if missing:
        hint = f"here are: {', '.join(sorted(there)) or 'none'}"
        if OPENPGP in missing:
            hint = f"GnuPG hands over its own keys: gpg --homedir {private.folder / OPENPGP} --export-secret-keys"
        message = f"private keys that are not in {private.folder}: {', '.join(missing)}"
        raise KeysError(message, reason="keys-missing", hint=hint)
    for name in names:
        private.move(*there[name], target.absolute(), keep=not move)
    done = "moved" if move else "copied"
    emit(
        {"exported": list(names), "to": str(target), "moved": move}, as_json, f"{done} to {target}: {', '.join(names)}"
    )


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--previous", type=click.Path(path_type=Path), help="The root before a root; default: that of the project."
)
@passphrase_option
@json_option
@pass_context
def sign(context: Context, file: Path, previous: Path | None, passphrase_fd: int | None, as_json: bool) -> None:
    """Add the signatures of the keys that are here to metadata, or sign a manifest. Needs no project and no network.

    Example: mixos keys sign 2.root.json --previous 1.root.json
    """
    from buildsys.keys import tuf
    from buildsys.keys.public import read

    private = private_keys(context, passphrase_fd)
    if file.name.endswith((".root.json", ".targets.json", ".snapshot.json", "timestamp.json")):
        metadata = read(file)
        root = read(previous).signed if previous else _root_for(context, file, metadata)
        if metadata.signed.type == "root":
            names = tuf.sign_root(metadata, root, private)
        else:
            names = tuf.sign(metadata, root.roles[metadata.signed.type], root, private)
        if not names:
            hint = "the keys that it needs are elsewhere, or have signed already"
            raise KeysError(f"no key here signs {file}", reason="keys-missing", hint=hint)
        _keep(context, private, file, metadata, as_json, {"signed": names}, f"signed by {', '.join(names)}")
    else:
        _sign_manifest(private, file, as_json)


def _sign_manifest(private: Any, file: Path, as_json: bool) -> None:
    from buildsys.files import atomic_write
    from buildsys.keys import openpgp
    from common.bundle import manifest
    from image.host import image_errors

    text = named_file(file, manifest.MAX_BYTES + 1).decode("utf-8", "replace")
    with image_errors(file):
        found = manifest.parse(text)
    made = {one: openpgp.sign(private, text, one) for one in openpgp.held(private)}
    if not made:
        raise KeysError(f"there is no OpenPGP key in {private.folder}", reason="keys-missing")
    paths = [file.with_name(f"{file.name}.{one[-16:].lower()}.asc") for one in made]
    for path, text in zip(paths, made.values(), strict=True):
        atomic_write(path, text.encode())
    said = f"the manifest of {found.version} is signed: {', '.join(map(str, paths))}"
    emit({"signed": list(made), "files": list(map(str, paths))}, as_json, said)


@keys.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("others", nargs=-1, required=True, type=click.Path(path_type=Path))
@json_option
@pass_context
def merge(context: Context, file: Path, others: tuple[Path, ...], as_json: bool) -> None:
    """Take the signatures of copies of a file into it.

    Example: mixos keys merge keys/pending/2.root.json /media/stick/2.root.json
    """
    from buildsys.keys import tuf
    from buildsys.keys.public import read

    metadata = read(file)
    count = tuf.merge(metadata, [read(other) for other in others])
    _keep(context, private_keys(context), file, metadata, as_json, {"merged": count}, f"{count} signatures taken over")


def _root_for(context: Context, file: Path, metadata: Any) -> Any:
    """The root whose keys sign that metadata: of the project; beside the file where there is no project."""
    from buildsys.keys.public import Public, read

    if metadata.signed.type == "root":
        beside = file.with_name(f"{metadata.signed.version - 1}.root.json")
        if beside.exists():
            return read(beside).signed
        if metadata.signed.version == 1:
            return None
    if not (context.root / "mixos.toml").exists() and not context.config:
        hint = "bring the newest root along, and name it by --previous"
        raise KeysError("there is no project here to take the root from", reason="keys-none", hint=hint)
    return Public(context.project.keys).root().signed


def _keep(
    context: Context, private: Any, file: Path, metadata: Any, as_json: bool, data: dict[str, Any], text: str
) -> None:
    """Write metadata back; a root that is complete, in the project's folder, comes into force."""
    from buildsys.files import atomic_write
    from buildsys.keys import tuf
    from buildsys.keys.public import Public, dump, name_of

    atomic_write(file, dump(metadata))
    if metadata.signed.type == "root" and (context.root / "mixos.toml").exists():
        public = Public(context.project.keys)
        if file.absolute() == public.pending / name_of(metadata):
            data["missing"] = tuf.missing(metadata, public.root().signed)
            text += f"; {data['missing']} more are needed"
            if not data["missing"]:
                text = f"root {metadata.signed.version} is in force" + _in_force(metadata, private, public)
    emit({**data, "file": str(file)}, as_json, text)


@keys.command()
@passphrase_option
@json_option
@pass_context
def renew(context: Context, passphrase_fd: int | None, as_json: bool) -> None:
    """Sign the list of releases anew, before it expires: every few weeks for a channel. Example: mixos keys renew"""
    from buildsys.keys import sign as releases
    from buildsys.keys import tuf

    renewed = releases.renew(private_keys(context, passphrase_fd), public_keys(context), tuf.utc_now())
    emit({"renewed": renewed}, as_json, f"signed anew: {', '.join(renewed)}")
