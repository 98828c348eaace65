"""Some of these tests act as the device does: other accounts, network namespaces, mounts. Only root may."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from daemon.core.part import Context
from tests.supervision import folders

HERE = Path(__file__).parent
AS_ROOT = frozenset(
    f"test_{name}.py"
    for name in (
        "backup",
        "console",
        "dbus",
        "escapes_host",
        "firewall",
        "mdns",
        "net",
        "net_dhcp",
        "sandbox_proxy",
        "shim",
    )
)
CLONE_NEWNET = 0x40000000
REASON = "other accounts, mounts and network namespaces need root"  # tests/conftest.py allows it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave them out for others; continuous integration runs as root."""
    if os.geteuid() == 0:
        return
    for item in items:
        if item.path.parent == HERE and item.path.name in AS_ROOT:
            item.add_marker(pytest.mark.skip(reason=REASON))


@pytest.fixture
def place() -> Iterator[Context]:
    """Folders for a supervisor of its own."""
    with folders() as context:
        yield context


@pytest.fixture
def namespace() -> Iterator[None]:
    """An empty network for this test alone; `ip` and the code under test run inside it."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
    yield
    assert libc.setns(home, CLONE_NEWNET) == 0
    os.close(home)
