"""The part `update` on the tree of a device (`tests.slots`): brought up, asked as `mixctl` does, ended.

status = run(device.tree, lambda update: ask(update, "status"), slots=slots(device.tree))
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from daemon.core.method import Caller, Role
from daemon.core.part import Context
from daemon.parts.update.part import Update
from tests.hostpackages import ROOT

ADMIN = Caller(Role.ADMIN, 0, 0, 1, "somebody", "local")
PATIENCE = 120.0  # seconds for all that a test does with it
Result = TypeVar("Result")


def program(code: str) -> tuple[str, ...]:
    """Words of a process of ours; `sys` and `Path` are imported."""
    return (sys.executable, "-c", f"import sys\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT)!r})\n{code}")


def slots(tree: Path, before: str = "") -> tuple[str, ...]:
    """`mixos-slots` on that tree. before: a line of code."""
    main = f"from daemon.slots.main import main\nsys.exit(main(sys.argv[1:], Path({str(tree)!r})))"
    return program(f"{before}\n{main}")


def context_of(tree: Path, state: str = "state", etc: str = "etc/mixos") -> Context:
    """Folders of that tree."""
    return Context(run=tree / "run/mixos", state=tree / state, etc=tree / etc, cgroups=tree / "cgroup")


def run(
    tree: Path, scenario: Callable[[Update], Awaitable[Result]], context: Context | None = None, **given: Any
) -> Result:
    """What a scenario gives, while the part is up. given: as `Update`, its programs above all."""

    async def life() -> Result:
        update = Update(context or context_of(tree), root=tree, **given)
        await update.start()
        try:
            async with asyncio.timeout(PATIENCE):
                return await scenario(update)
        finally:
            await update.stop()

    return asyncio.run(life())


async def ask(update: Update, name: str, **params: object) -> Any:
    """The answer of a method, `update.` left out; all items of a stream."""
    method = next(one for one in update.methods() if one.name == f"update.{name}")
    found: Any = method.handler(ADMIN, method.params.model_validate(params))
    if not method.stream:
        return await found
    async with contextlib.aclosing(found) as items:
        return [item async for item in items]
