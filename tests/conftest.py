"""For all tests: host packages are there before the first one runs, and no skip hides a missing program."""

from __future__ import annotations

import functools
import inspect
import json
import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ConfigDict, TypeAdapter

from common.errors import HostError
from daemon.core import answers
from daemon.core.method import Method
from tests import hostpackages
from tests.ports import held_port

TESTS = Path(__file__).resolve().parent
# The only reasons to skip: what a host's kernel or the user's rights do not allow, never a program to be installed.
ALLOWED_SKIPS = (
    "loop devices need root",
    "other accounts, mounts and network namespaces need root",
    "other accounts need root",
    "this host gives no loop device",
    "this host's kernel mounts no ext4 file system",
    "this host's kernel mounts no vfat file system",
)


def pytest_sessionstart() -> None:
    """Tests interrupt builds: a shell that started us in the background had SIGINT ignored, which children inherit."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Install what the collected tests need, or stop with the command that does."""
    if config.option.collectonly or not items:
        return
    folders = {item.path.relative_to(TESTS).parts[0] for item in items if item.path.is_relative_to(TESTS)}
    try:
        installed = hostpackages.ensure(hostpackages.ROOT / "ci" / "test-packages", folders)
    except HostError as error:
        pytest.exit(f"{error.message}\n{error.hint}", returncode=error.exit_code)
    if installed:
        config.issue_config_time_warning(UserWarning(f"host packages were installed: {' '.join(installed)}"), 2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A skip for any reason that is not allowed is a failure."""
    report = yield
    if report.skipped and isinstance(report.longrepr, tuple) and not hasattr(report, "wasxfail"):
        reason = str(report.longrepr[2]).removeprefix("Skipped: ")
        if not reason.startswith(ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, which proves nothing: {reason}"
    return report


@pytest.fixture
def record_property(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """The same for values of any kind: between processes that run tests only plain ones go."""
    return lambda name, value: record_property(name, value if isinstance(value, int | float | str) else str(value))


@pytest.fixture
def port() -> Iterator[int]:
    """A TCP port that this test holds; a server with SO_REUSEADDR can listen on it."""
    with held_port() as number:
        yield number


@functools.cache
def _type(handler: Callable[..., Any]) -> TypeAdapter[Any]:
    """What a handler says that it answers, to the letter: no member more, none of another type."""
    declared = answers.answer(Method("a.b", "", handler))
    return TypeAdapter(tuple[declared], config=ConfigDict(extra="forbid", strict=True))  # type: ignore[valid-type]


def _true(handler: Callable[..., Any], answer: Any) -> Any:
    """The answer, when it is what the handler says. Raises ValidationError, and TypeError for what is not JSON."""
    _type(getattr(handler, "__func__", handler)).validate_json(json.dumps([answer]))
    return answer


def _checked(handler: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.isasyncgenfunction(handler):

        @functools.wraps(handler)
        async def items(*given: Any) -> Any:
            source = handler(*given)
            try:
                async for item in source:
                    yield _true(handler, item)
            finally:
                await source.aclose()

        return items

    @functools.wraps(handler)
    async def once(*given: Any) -> Any:
        return _true(handler, await handler(*given))

    return once


@pytest.fixture(autouse=True)
def true_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer that a method of ours gives in any test is of the type that its handler declares."""
    make = Method.__new__

    def checked(cls: type[Method], name: str, summary: str, handler: Any, *rest: Any, **others: Any) -> Method:
        ours = getattr(handler, "__module__", "").startswith("daemon.")
        return make(cls, name, summary, _checked(handler) if ours else handler, *rest, **others)

    monkeypatch.setattr(Method, "__new__", checked)
