"""What every command that alters the device has: how to try it, and what is told of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import click

from daemon.client.cli.common import Function, json_option, show

SECONDS = 130.0  # rules with long lists, names that nobody answers for: on small boards both take their time


def change_options(function: Function) -> Function:
    """Adds --dry-run, --confirm, --force and --json. The function hands its keywords `dry_run`, `confirm`, `force` to
    `wish`."""
    for option in (
        json_option,
        click.option("--force", is_flag=True, help="For good, even if it cuts you off."),
        click.option(
            "--confirm",
            type=click.IntRange(0, 3600),
            metavar="SECONDS",
            help="Undo it after so long unless `mixctl confirm` comes. 0: for good.",
        ),
        click.option("--dry-run", is_flag=True, help="Only show what would be done."),
    ):
        function = option(function)
    return function


def wish(values: Mapping[str, object]) -> dict[str, object]:
    """The parameters of a call, without what was not given."""
    return {
        key.replace("_", "-"): value
        for key, value in values.items()
        if value is not None and value is not False and value != ()
    }


def tell(answer: Mapping[str, Any], as_json: bool, form: Callable[[Any], str]) -> int:
    """Print what came of a change that may be about files of any part. The exit code: 1 when one is not in force."""
    show(answer, as_json, form)
    return 1 if answer["problems"] else 0


def changed(answer: Mapping[str, Any]) -> str:
    """What came of a change, for people."""
    if not answer["applied"]:
        parts = [text for text in (answer["files"], answer["diff"], "\n".join(answer["steps"])) if text]
        warning = ["this could cut your connection: it would be on trial"] if answer["cuts-off"] else []
        return "\n".join([*(parts or ["nothing would change"]), *warning])
    lines = list(answer["steps"])
    if answer["confirm"]:
        why = "this could cut your connection, so it is " if answer["cuts-off"] else ""
        lines.append(f"{why}on trial for {answer['confirm']} s; keep it with: mixctl confirm")
    elif not answer["problems"]:
        lines.append("in force" if answer["changed"] else "in force (nothing changed)")
    return "\n".join([*lines, *problems(answer)])


def ended(answer: Mapping[str, Any]) -> str:
    """What came of a confirmation or an undo, for people."""
    stays = answer.get("stays", ())
    end = "confirmed" if answer.get("confirmed") else "given up" if stays else "undone"
    return "\n".join([end, *(f"not undone: {text}" for text in stays), *problems(answer)])


def problems(answer: Mapping[str, Any]) -> list[str]:
    """Changed files that are not in force."""
    return [f"not in force: {one['method']}: {one['message']}" for one in answer.get("problems", ())]
