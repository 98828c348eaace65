"""For all tests: host packages are there before the first one runs, and no skip hides a missing program."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from common.errors import HostError
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
def port() -> Iterator[int]:
    """A TCP port that this test holds; a server with SO_REUSEADDR can listen on it."""
    with held_port() as number:
        yield number
