"""Answers are what their handlers say: the check that runs under all tests does find what is not."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from pydantic import ValidationError

from buildsys.run import run
from daemon.core.answers import schema
from daemon.core.method import EVERYONE, Caller, Method, Nothing, Role
from daemon.parts.storage.answers import Trimmed
from tests.hostpackages import ROOT

ME = Caller(Role.ADMIN, 0, 0, 1, "root", "local")


def method(answer: Any) -> Method:
    async def handler(caller: Caller, params: Nothing) -> Trimmed:
        return answer  # type: ignore[no-any-return]

    handler.__module__ = "daemon.parts.storage.part"  # one of ours
    return Method("storage.test", "For a test.", handler, EVERYONE)


def asked(found: Method) -> Any:
    return asyncio.run(found.handler(ME, Nothing()))  # type: ignore[arg-type]


def test_a_true_answer_passes():
    answer = {"path": "/data", "bytes": 1}
    assert asked(method(answer)) is answer


@pytest.mark.parametrize(
    "answer",
    [
        {"path": "/data", "bytes": 1, "more": 1},
        {"path": "/data"},
        {"path": "/data", "bytes": "1"},
        {"path": "/data", "bytes": 1.5},
        {"path": "/data", "bytes": None},
        [],
    ],
)
def test_an_answer_that_is_not_what_the_handler_says_fails_the_test(answer: Any):
    with pytest.raises(ValidationError):
        asked(method(answer))


def test_an_answer_that_is_not_json_fails_the_test():
    with pytest.raises(TypeError):
        asked(method({"path": b"/data", "bytes": 1}))


def test_items_of_streams_are_checked():
    async def items(caller: Caller, params: Nothing) -> AsyncIterator[Trimmed]:
        yield {"path": "/data", "bytes": 1}
        yield {"path": "/data"}  # type: ignore[typeddict-item]

    async def read(handler: Callable[..., Any]) -> None:
        source = handler(ME, Nothing())
        assert await anext(source) == {"path": "/data", "bytes": 1}
        with pytest.raises(ValidationError):
            await anext(source)

    items.__module__ = "daemon.parts.storage.part"
    checked = Method("storage.test", "For a test.", items, EVERYONE)
    assert checked.stream
    asyncio.run(read(checked.handler))


def test_types_are_not_loaded_at_start():
    """Neither those of answers nor what makes schemas of them: they would cost every device a megabyte."""
    load = (
        "import sys, daemon.mixosd; from daemon.core.manifest import manifests\n"
        "parts = [one.find(one.part) for one in manifests() if one.part]\n"
        "print([name for name in sys.modules if name.startswith('daemon.') and name.endswith('.answers')])"
    )
    done = run([sys.executable, "-c", load], cwd=ROOT)
    assert done.stdout.decode().strip() == "[]"


def test_schemas_are_those_that_pydantic_makes():
    """Of the same types, by other people's code; but for what only we say (units), or only they (titles of members)."""
    from pydantic import TypeAdapter

    from daemon import reference
    from daemon.core.answers import answer

    def plain(found: Any, known: Any) -> Any:
        if isinstance(found, dict):
            if "$ref" in found:
                return plain(known[found["$ref"].rpartition("/")[2]], known)
            left_out = (
                {"unit", "description", "title", "$defs"} if "properties" not in found else {"description", "$defs"}
            )
            kept = {name: one for name, one in found.items() if name not in left_out}
            if "const" in kept:  # one value alone
                kept["enum"] = [kept.pop("const")]
            if "properties" in kept:
                kept["properties"] = {name: plain(one, known) for name, one in kept["properties"].items()}
                kept.pop("additionalProperties", None)
                kept.setdefault("required", [])
                return kept
            return {name: plain(one, known) for name, one in kept.items() if one is not True and one != {}}
        return [plain(one, known) for one in found] if isinstance(found, list) else found

    for one in reference.methods():
        kind = answer(one)
        theirs = TypeAdapter(kind).json_schema()
        assert plain(schema(kind), {}) == plain(theirs, theirs.get("$defs", {})), one.name
