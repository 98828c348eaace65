"""mixos repro"""

from __future__ import annotations

import click

from buildsys.cli.context import Context, build_options, emit, options, pass_context, progress
from buildsys.session import open_session
from common.errors import CheckError

QUICK = ("base-files", "daemon", "rootfs", "root-image", "verity", "uki", "initramfs", "rescue", "disk")


@click.command()
@click.argument("targets", nargs=-1)
@build_options
@pass_context
def repro(
    context: Context,
    targets: tuple[str, ...],
    kernel_source: str | None,
    offline: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Build TARGETS a second time, in another place and with other parallelism, and compare every byte.

    Without TARGETS: the steps from root file system to disk image. Example: mixos repro kernel
    """
    names = targets or QUICK
    different: dict[str, str] = {}
    with (
        progress(as_json) as sink,
        open_session(context.project, options(kernel_source, offline, jobs), sink) as session,
    ):
        session.build(names)
        for name in names:
            session.sound(session.plan.actions[name].dependencies)
            path = session.executor.differs(session.plan.actions[name])
            if path is not None:
                different[name] = path
    text = "\n".join(f"{name}: {different.get(name) or 'identical'}" for name in names)
    emit({"targets": list(names), "different": different}, as_json, text)
    if different:
        raise CheckError(f"not reproducible: {', '.join(different)}", reason="not-reproducible")
