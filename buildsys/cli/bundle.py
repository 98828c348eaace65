"""mixos bundle"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from buildsys.cli.context import Context, emit, json_option, pass_context
from buildsys.cli.keys import passphrase_option
from common.errors import UsageError
from common.units import size

if TYPE_CHECKING:
    from common.bundle.manifest import Manifest

hook_option = click.option(
    "--hook",
    "hooks",
    multiple=True,
    metavar="WHEN[:SECONDS]=FILE",
    help="A program that devices run, confined, before-stage or before-apply, and that may refuse. May be repeated.",
)

encrypt_option = click.option(
    "--encrypt-to",
    "devices",
    multiple=True,
    metavar="KEY|FILE",
    help="Devices that alone can read it: what 'mixctl update key' prints, or a file of such lines. May be repeated.",
)


def built_file(path: Path) -> Path:
    """The path of an image or a bundle. Raises UsageError `no-image`."""
    if not path.is_file():
        what = "is no file" if path.exists() else "is not there"
        raise UsageError(f"the image {path} {what}", reason="no-image", hint="build it first: mixos build")
    return path


def contents(manifest: Manifest) -> tuple[dict[str, object], str]:
    """What devices fetch of a bundle and what they run of it: for programs, and in lines for people."""
    rows = [(one.source.version if one.source else None, one.transfer) for one in manifest.plans]
    hooks = [
        {"when": one.when, "seconds": one.seconds, "size": one.size, "sha256": one.sha256} for one in manifest.hooks
    ]
    lines = [f"  {size(transfer):>10}  from {version or 'anything'}" for version, transfer in rows]
    lines += [f"  {size(one.size):>10}  run {one.when}, at most {one.seconds} s" for one in manifest.hooks]
    plans = [{"from": version, "transfer": transfer} for version, transfer in rows]
    return {"plans": plans, "hooks": hooks}, "\n".join(lines)


@click.command()
@click.argument("image", required=False, type=click.Path(path_type=Path))
@click.option(
    "--from",
    "earlier",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A release that devices run, an image or a bundle: they fetch what differs. May be repeated.",
)
@click.option("--minimum", type=click.IntRange(min=0), default=0, help="Sequence that a device must run to take it.")
@hook_option
@encrypt_option
@passphrase_option
@json_option
@pass_context
def bundle(
    context: Context,
    image: Path | None,
    earlier: tuple[Path, ...],
    minimum: int,
    hooks: tuple[str, ...],
    devices: tuple[str, ...],
    passphrase_fd: int | None,
    as_json: bool,
) -> None:
    """Release IMAGE (default: the one in the out folder): sign it, with ways from earlier releases, as one file.

    Example: mixos bundle --from releases/mixos-0.1.0.mixb
    """
    from buildsys import bundle as making
    from buildsys.cli.keys import private_keys, release_keys
    from buildsys.keys import tuf
    from buildsys.keys.payload import key_of, new_key
    from buildsys.keys.sign import sign_release

    programs, named = making.read_hooks(hooks), making.read_devices(devices)
    project, public = context.project, release_keys(context)
    path = built_file(image or project.image_file)
    private, now = private_keys(context, passphrase_fd), tuf.utc_now()
    key = partial(key_of, private)
    new, before = making.load(path, key), [making.load(one, key) for one in earlier]
    found = project.config.image
    begun = public.begun(new.version)  # one whose signatures had to be waited for goes on as it was
    created = begun.created if begun is not None else int(now.timestamp())
    facts = making.Facts(found.sequence, minimum, project.config.machine.arch, found.variant, created, programs)
    target = project.out / f"mixos-{new.version}.mixb"
    target.parent.mkdir(parents=True, exist_ok=True)
    jobs = os.cpu_count() or 1
    lock = making.Lock(named, partial(new_key, private)) if named else None
    made = making.make(new, before, facts, lambda text: sign_release(text, private, public, now), target, jobs, lock)
    data, text = contents(made)
    emit({"bundle": str(target), "version": new.version, **data}, as_json, f"{target}\n{text}")
