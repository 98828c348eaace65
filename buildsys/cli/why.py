"""mixos why"""

from __future__ import annotations

import click

from buildsys.cli.context import Context, build_options, emit, options, pass_context, progress
from buildsys.key import differences
from buildsys.session import open_session


@click.command()
@click.argument("target", default="disk")
@build_options
@pass_context
def why(
    context: Context, target: str, kernel_source: str | None, offline: bool, jobs: int | None, as_json: bool
) -> None:
    """Explain what of TARGET would be rebuilt, and which of its inputs changed since the last build.

    Example: mixos why kernel
    """
    reasons: dict[str, list[str]] = {}
    with (
        progress(as_json=False) as sink,
        open_session(context.project, options(kernel_source, offline, jobs), sink) as session,
    ):
        executor = session.executor
        stale: set[str] = set()
        for name in session.plan.order([target]):
            action = session.plan.actions[name]
            pending = sorted(stale.intersection(action.dependencies))
            if pending:
                reasons[name] = [f"depends on {other}, whose new output is not known yet" for other in pending]
                stale.add(name)
                continue
            result = executor.lookup(action)
            if result is not None:
                executor.results[name] = result
                continue
            latest = executor.store.latest(name)
            stale.add(name)
            reasons[name] = (
                differences(latest.document, executor.document(action)) or ["its stored output is gone"]
                if latest is not None
                else ["it was never built here, or its result was removed"]
            )
    text = "\n".join(f"{name}\n" + "\n".join(f"    {line}" for line in lines) for name, lines in reasons.items())
    emit({"target": target, "rebuild": reasons}, as_json, text or f"{target} is up to date")
