"""mixos cache"""

from __future__ import annotations

import click

from buildsys.cli.context import Context, emit, json_option, pass_context
from buildsys.config.model import parse_size
from buildsys.store import Store
from common.errors import StoreError, UsageError
from common.units import size


@click.group()
def cache() -> None:
    """Look at the content store, check it, and make it smaller.

    Example: mixos cache ls · mixos cache gc --max-size 4G
    """


def _store(context: Context) -> Store:
    return Store(context.project.cache / "store")


@cache.command()
@json_option
@pass_context
def ls(context: Context, as_json: bool) -> None:
    """List stored results, newest of each action first. Example: mixos cache ls --json"""
    store = _store(context)
    with store.session():
        results = store.results()
    rows = [
        {"action": r.action, "key": r.key, "output": r.output, "bytes": r.size, "seconds": r.seconds}
        for r in sorted(results, key=lambda r: r.action)
    ]
    lines = [f"{size(float(str(r['bytes']))):>10} {r['seconds']:>8} s  {r['action']}" for r in rows]
    emit({"results": rows}, as_json, "\n".join(lines))


@cache.command()
@json_option
@pass_context
def verify(context: Context, as_json: bool) -> None:
    """Hash every stored tree again; damaged ones are named and removed. Example: mixos cache verify"""
    store = _store(context)
    damaged: dict[str, str] = {}
    with store.session():
        for digest in store.digests():
            problem = store.remove_damaged(digest)
            if problem is not None:
                damaged[digest] = problem
    text = "\n".join(f"damaged, removed: {digest} ({path})" for digest, path in damaged.items())
    emit({"checked": True, "damaged": damaged}, as_json, text or "every stored tree is what its name says")
    if damaged:
        raise StoreError(
            f"{len(damaged)} stored trees were damaged",
            reason="store-damaged",
            hint="they were removed and will be built again; check the disk",
        )


@cache.command()
@click.option("--max-size", default="8G", show_default=True, help="Keep the results used last up to this size.")
@json_option
@pass_context
def gc(context: Context, max_size: str, as_json: bool) -> None:
    """Remove old results, last used kept first, until the store fits. Example: mixos cache gc --max-size 2G"""
    try:
        limit = parse_size(max_size)
    except ValueError as error:
        raise UsageError(f"--max-size {max_size}: {error}", reason="size-invalid") from error
    store = _store(context)
    freed = store.collect(lambda: kept_outputs(store, limit))
    emit({"freed": freed}, as_json, f"freed {size(freed)}")


def kept_outputs(store: Store, limit: int) -> set[str]:
    """The outputs to keep: of the newest results first, as many as fit into `limit` bytes."""
    kept: set[str] = set()
    used = 0
    for result in store.results():
        if result.output not in kept:
            used += result.size
            if used > limit:
                break
            kept.add(result.output)
    return kept
