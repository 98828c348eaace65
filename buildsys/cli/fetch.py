"""mixos fetch"""

from __future__ import annotations

import click

from buildsys.cli.context import Context, build_options, emit, options, pass_context, progress
from buildsys.fetch import Fetcher
from buildsys.graph import FromSource
from buildsys.kernelsource import Chooser
from buildsys.plan import IMAGE_TARGET
from buildsys.session import open_session


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--retry-pin", is_flag=True, help="Forget that the pinned kernel could not be had, and try again.")
@build_options
@pass_context
def fetch(
    context: Context,
    targets: tuple[str, ...],
    retry_pin: bool,
    kernel_source: str | None,
    offline: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Get every source that TARGETS (default: the image) need, so that a later build needs no network.

    Example: mixos fetch && mixos build --offline
    """
    if retry_pin:
        Chooser.at(context.project, Fetcher(context.project.distfiles, lambda event: None)).forget()
    with (
        progress(as_json) as sink,
        open_session(context.project, options(kernel_source, offline, jobs), sink) as session,
    ):
        names = {
            value.source
            for name in session.plan.order(targets or (IMAGE_TARGET,))
            for value in session.plan.actions[name].inputs.values()
            if isinstance(value, FromSource)
        }
        executor = session.executor
        files = {name: str(executor.fetcher.get(executor.lock[name])) for name in sorted(names)}
    emit({"sources": files}, as_json, f"{len(files)} sources are in {context.project.distfiles}")
