"""mixos shell"""

from __future__ import annotations

import sys
from dataclasses import replace

import click

from buildsys.cli.context import Context, build_options, options, pass_context, progress
from buildsys.execute import enter_command, sandbox_spec, spec_file
from buildsys.graph import Script
from buildsys.run import spawn
from buildsys.session import open_session


@click.command()
@click.argument("target")
@build_options
@pass_context
def shell(
    context: Context, target: str, kernel_source: str | None, offline: bool, jobs: int | None, as_json: bool
) -> None:
    """Open a shell in the sandbox of TARGET, in what its last failed attempt left, or a fresh one.

    The action's script is at /mixos/script.sh. Nothing done here reaches the store. Example: mixos shell recipe-openssh
    """
    with (
        progress(as_json=False) as sink,
        open_session(context.project, options(kernel_source, offline, jobs), sink) as session,
    ):
        action = session.plan.actions[session.plan.order([target])[-1]]
        if action.dependencies:
            session.build(action.dependencies)
            session.sound(action.dependencies)
        executor = session.executor
        failed = executor.store.root / "failed" / action.name
        scratch = executor.store.stage()
        try:
            staged = failed if failed.is_dir() else scratch
            hosts = executor.inputs(action, scratch)
            spec = sandbox_spec(action, staged, hosts, {**executor.env, **action.env}, executor.jobserver)
            spec = replace(spec, argv=("/bin/sh",), interactive=True)
            what = "; run: sh -eu /mixos/script.sh" if isinstance(action.run, Script) else ""
            print(f"shell in the sandbox of {action.name}{what}", file=sys.stderr)
            with spec_file(spec, staged) as descriptor:
                status = spawn(enter_command(descriptor), pass_fds=(descriptor, *spec.fds), terminal=True).wait()
        finally:
            executor.store.discard(scratch)
    sys.exit(status)
