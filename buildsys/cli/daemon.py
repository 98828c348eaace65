"""mixos daemon"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import click

from buildsys.cli.context import Context, build_options, options, pass_context, progress
from buildsys.session import open_session
from common.errors import HostError

HELPERS = "usr/libexec/mixos"


@click.command()
@click.option("--folder", type=click.Path(), help="Where it keeps everything (default: out/daemon).")
@click.option("--part", "parts", multiple=True, metavar="NAME", help="Only this part of the daemon (may be repeated).")
@build_options
@pass_context
def daemon(
    context: Context,
    folder: str | None,
    parts: tuple[str, ...],
    kernel_source: str | None,
    offline: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Run the device's daemon on this host, as you, until Ctrl-C; services that run then go on without it.

    It supervises and sandboxes with what this host lets your account do, and leaves network and disks alone: `mixctl
    sandbox explain` and `mixctl service check` say what is not enforced. Example: mixos daemon
    """
    if folder == "":
        raise click.BadParameter("an empty name; . is the current folder", param_hint="--folder")
    project = context.project
    home = Path(folder or project.out / "daemon").absolute()
    with (
        progress(as_json) as sink,
        open_session(project, options(kernel_source, offline, jobs), sink) as session,
    ):
        built = session.build(["native"])["native"]
        helpers = session.executor.store.tree(built.output) / HELPERS
        prepare(home, helpers, project.root / "daemon/linux/sandbox/profiles")
    socket = home / "run/mixosd.sock"
    if len(os.fsencode(socket)) > 107:
        raise HostError(
            f"{socket}: too long a path for a socket", reason="daemon-folder", hint="choose one: --folder /tmp/mixosd"
        )
    print(
        f"in another terminal: MIXOS_SOCKET={socket} {Path(sys.executable).with_name('mixctl')} status", file=sys.stderr
    )
    words = [word for part in parts for word in ("--part", part)]
    os.chdir(project.root)
    os.execv(sys.executable, [sys.executable, "-m", "daemon.main", "--folder", os.fspath(home), *words])


def prepare(home: Path, helpers: Path, profiles: Path) -> None:
    """The folders of a daemon, with the programs in C and the sandbox profiles of this checkout."""
    for name in ("etc/units", "lib/units"):
        (home / name).mkdir(parents=True, exist_ok=True)
    for source, target in ((helpers, home / "libexec"), (profiles, home / "lib/profiles")):
        target.mkdir(exist_ok=True)
        for path in source.iterdir():
            shutil.copy2(path, target / f".{path.name}")
            (target / f".{path.name}").replace(target / path.name)
