"""mixos release"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from buildsys.cli.bundle import contents, encrypt_option, hook_option
from buildsys.cli.context import Context, emit, json_option, pass_context
from buildsys.cli.keys import passphrase_option
from common.errors import KeysError, UsageError

if TYPE_CHECKING:
    from buildsys.bundle import Content, Hook
    from buildsys.channel import Channel
    from common.bundle.manifest import Manifest
    from common.trust.channel import Terms


@click.command()
@click.argument("source", metavar="[IMAGE|BUNDLE]", required=False, type=click.Path(path_type=Path))
@click.option("--channel", "folder", required=True, type=click.Path(path_type=Path), help="The folder that is served.")
@click.option("--wave", "waves", multiple=True, metavar="SHARE[@WHEN]", help="Who is offered it when; default: all.")
@click.option("--max-failures", metavar="SHARE", help="More devices that fail than this, and it is to be paused.")
@click.option(
    "--from",
    "earlier",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A release, beside those of the channel, from which devices fetch what differs. May be repeated.",
)
@click.option(
    "--deltas",
    default=3,
    show_default=True,
    type=click.IntRange(0, 60),
    help="From how many releases of the channel devices fetch what differs.",
)
@click.option("--minimum", type=click.IntRange(min=0), default=0, help="Sequence that a device must run to take it.")
@hook_option
@click.option(
    "--db", "by", default="db", show_default=True, help="The key of Secure Boot that signs the kernel image: db-2, say."
)
@encrypt_option
@click.option("--plain", is_flag=True, help="Everybody may read it, also after a release that is encrypted.")
@click.option("--no-secure-boot", is_flag=True, help="Do not sign the kernel image: no device enforces it.")
@click.option("--check", "only_check", is_flag=True, help="Say what speaks against it, and sign nothing.")
@passphrase_option
@json_option
@pass_context
def release(
    context: Context,
    source: Path | None,
    folder: Path,
    waves: tuple[str, ...],
    max_failures: str | None,
    earlier: tuple[Path, ...],
    deltas: int,
    minimum: int,
    hooks: tuple[str, ...],
    by: str,
    devices: tuple[str, ...],
    plain: bool,
    no_secure_boot: bool,
    only_check: bool,
    passphrase_fd: int | None,
    as_json: bool,
) -> None:
    """Check what was built, sign it, and put it into a channel (default: the image in the out folder).

    Example: mixos release --channel /srv/updates --wave 5% --wave 100%@+2d
    """
    from buildsys import bundle as making
    from buildsys import release as gate
    from buildsys.channel import Channel, parse_share, parse_waves
    from buildsys.cli.bundle import built_file
    from buildsys.cli.keys import private_keys, release_keys
    from buildsys.keys import tuf
    from buildsys.keys.payload import key_of, new_key

    programs, named = making.read_hooks(hooks), making.read_devices(devices)
    project, public = context.project, release_keys(context)
    path = built_file(source or project.image_file)
    parse_waves(waves, 0)
    failures = None if max_failures is None else parse_share(max_failures)
    now, channel = tuf.utc_now(), Channel(folder.absolute())
    channel.check_origin(public)
    private = private_keys(context, passphrase_fd)
    key = partial(key_of, private)
    content, known = making.load(path, key), channel.read(path)
    if known is not None and (hooks or devices):
        raise UsageError(f"{path} is a bundle, and has its hooks and recipients", reason="bundle-made")
    sequence = project.config.image.sequence if known is None else known.sequence
    built = gate.Built.load(project.out / "manifest.json")
    gate.check(gate.Candidate(project, public, content, built, sequence, now.date(), (channel.folder,)))
    if not (plain or named or (known and known.encryption)):
        gate.check_encrypted(public, content.version)
    if only_check:
        emit({"version": content.version, "releasable": True}, as_json, f"nothing speaks against {content.version}")
        return
    if not no_secure_boot:
        content = _startable(content, context, private, public, by, bundled=known is not None)

    def terms_for(manifest: Manifest) -> Terms:
        return _terms(public, manifest, parse_waves(waves or ("100%",), manifest.created), waves, failures)

    if known is not None:
        _adopt(channel, path, known, terms_for(known), private, public)
        manifest = known
    else:
        before = [making.load(one, key) for one in earlier]
        before += [making.load(one, key) for one in channel.earlier(public, content.version, sequence, deltas)]
        before = _different(before)
        lock = making.Lock(named, partial(new_key, private)) if named else None
        manifest = _make(context, channel, content, before, minimum, programs, private, public, terms_for, lock)
    _say(manifest, channel, channel.publish(public), as_json)


def _say(manifest: Manifest, channel: Channel, written: list[str], as_json: bool) -> None:
    version, place = manifest.version, str(channel.bundle(manifest.version))
    told, text = contents(manifest)
    data = {"version": version, "bundle": place, **told, "written": written}
    emit(data, as_json, f"released {version}: {place}\n{text}")


def _startable(content: Content, context: Context, private: Any, public: Any, by: str, *, bundled: bool) -> Content:
    """With a kernel image that devices with Secure Boot start, too; a bundle has it or not."""
    from buildsys import release as gate
    from buildsys.keys import secureboot

    if not secureboot.NAME.fullmatch(by) or not by.startswith("db"):
        raise KeysError(f"{by} signs no kernel images: a key of db does", reason="keys-role")
    certificate = secureboot.read(public, f"{by}.pem")
    if bundled:
        gate.check_signed(content, certificate)
        return content
    kept = context.project.image_file.with_suffix(".efi")
    return gate.signed(content, certificate, lambda: secureboot.load_one(private, public, by), kept)


def _terms(
    public: Any, manifest: Manifest, waves: tuple[Any, ...], given: tuple[str, ...], failures: int | None
) -> Terms:
    """Those that it has, unless others were given."""
    from buildsys.channel import listed
    from common.trust.channel import Terms

    before = next((one.terms for one in listed(public) if one.version == manifest.version), None)
    if before is None:
        return Terms.of(manifest, waves, failures)
    changes: dict[str, Any] = {"waves": waves} if given else {}
    if failures is not None:
        changes["max_failures"] = failures
    return before.model_copy(update=changes)


def _different(found: list[Content]) -> list[Content]:
    return list({one.root_hash: one for one in found}.values())


def _make(
    context: Context,
    channel: Channel,
    content: Content,
    before: list[Content],
    minimum: int,
    hooks: tuple[Hook, ...],
    private: Any,
    public: Any,
    terms_for: Any,
    lock: Any,
) -> Manifest:
    from buildsys import bundle as making
    from buildsys.keys import tuf
    from buildsys.keys.sign import sign_release
    from common.bundle import manifest as manifests

    config, begun, now = context.project.config, public.begun(content.version), tuf.utc_now()
    created = begun.created if begun is not None else int(now.timestamp())
    facts = making.Facts(config.image.sequence, minimum, config.machine.arch, config.image.variant, created, hooks)

    def sign(text: str) -> Any:
        return sign_release(text, private, public, now, terms_for(manifests.parse(text)))

    channel.folder.mkdir(parents=True, exist_ok=True)
    return making.make(content, before, facts, sign, channel.bundle(content.version), os.cpu_count() or 1, lock)


def _adopt(channel: Channel, path: Path, known: Manifest, terms: Terms, private: Any, public: Any) -> None:
    """Put a bundle that was made before into the channel."""
    from buildsys.files import copy_sparse
    from buildsys.keys import tuf
    from buildsys.keys.sign import set_terms

    begun = public.begun(known.version)
    if f"release/{known.version}.json" not in public.listed() or begun != known:
        hint = "release the image: mixos release"
        raise KeysError(f"{path} is not on the list of releases", reason="keys-unknown", hint=hint)
    target = channel.bundle(known.version)
    channel.folder.mkdir(parents=True, exist_ok=True)
    if not (target.exists() and target.samefile(path)):
        copy_sparse(path, target)
    set_terms({known.version: terms}, private, public, tuf.utc_now())
