"""mixos plan"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from buildsys.cli.context import Context, build_options, emit, options, pass_context, progress
from buildsys.graph import Action, Call, FromAction, FromPath, FromSource
from buildsys.plan import IMAGE_TARGET
from buildsys.session import open_session
from common.errors import UsageError


@click.command()
@click.argument("targets", nargs=-1)
@click.option("--dot", is_flag=True, help="Print the graph for Graphviz.")
@build_options
@pass_context
def plan(
    context: Context,
    targets: tuple[str, ...],
    dot: bool,
    kernel_source: str | None,
    offline: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Show what a build of TARGETS would do, in order, without doing it.

    Example: mixos plan · mixos plan kernel --json · mixos plan --dot | dot -Tsvg > plan.svg
    """
    if dot and as_json:
        raise UsageError("--dot and --json are two forms of output", reason="usage", hint="choose one")
    with (
        progress(as_json=False) as sink,
        open_session(context.project, options(kernel_source, offline, jobs), sink) as session,
    ):
        names = session.plan.order(targets or (IMAGE_TARGET,))
        actions = [session.plan.actions[name] for name in names]
        store = session.executor.store
        seconds = {name: latest.seconds if (latest := store.latest(name)) else None for name in names}
    if dot:
        edges = [f'  "{d}" -> "{a.name}";' for a in actions for d in a.dependencies]
        print("digraph mixos {\n  rankdir=LR; node [shape=box];\n" + "\n".join(edges) + "\n}")
        return
    kernel = session.kernel
    rows = [describe(action) | {"last_seconds": seconds[action.name]} for action in actions]
    text = "\n".join(f"{row['action']:<28} {row['runs']:<34} {' '.join(row['inputs'].values())}" for row in rows)
    emit({"kernel": asdict(kernel), "actions": rows}, as_json, f"kernel: {kernel}\n\n{text}")


def describe(action: Action) -> dict[str, Any]:
    """An action as JSON."""
    inputs = {
        name: value.action
        if isinstance(value, FromAction)
        else f"source:{value.source}"
        if isinstance(value, FromSource)
        else f"path:{value.path}"
        for name, value in sorted(action.inputs.items())
        if isinstance(value, FromAction | FromSource | FromPath)
    }
    runs = action.run.function if isinstance(action.run, Call) else "script"
    return {"action": action.name, "runs": runs, "inputs": inputs}
