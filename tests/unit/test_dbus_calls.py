"""What the door of D-Bus may say: calls, in JSON, by whom the bus names; anything else is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from common.errors import MixosError
from daemon.core.audit import Audit
from daemon.core.dispatch import Dispatcher
from daemon.core.events import Bus
from daemon.core.keys import Keys
from daemon.core.method import Role
from daemon.core.spool import Spool
from daemon.doors.dbus import Calls
from tests.daemons import Sample

ECHO = ["/org/mixos/sample", "org.mixos.Sample1", "Echo"]


def answer(tmp_path, *params: Any) -> Any:
    audit = Audit(tmp_path / "audit")
    audit.open()
    dispatcher = Dispatcher(audit, Keys(tmp_path / "keys"), Bus(), Spool(tmp_path / "transfers"))
    dispatcher.add(Sample().methods())
    try:
        return asyncio.run(Calls(dispatcher, {7: Role.VIEWER}).answer(params[0] if len(params) == 1 else list(params)))
    except MixosError as error:
        return error.reason
    finally:
        audit.close()


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ([*ECHO, "s", ["hi"], 7, 1], {"text": "hi", "count": 1}),
        ([*ECHO, "sa{sv}", ["hi", {"count": 2}], 7, 1], {"text": "hi", "count": 2}),
        ([*ECHO, "s", ["hi"], 8, 1], "role-none"),
        ([*ECHO, "s", ["hi"], None, 0], "role-none"),
        ([*ECHO, "s", ["hi"], "7", 1], "dbus-invalid"),
        ([*ECHO, "s", ["hi"], True, 1], "dbus-invalid"),
        ([*ECHO, "s", "hi", 7, 1], "dbus-invalid"),
        ([*ECHO, "s", [], 7, 1], "dbus-signature"),
        ([*ECHO, "s", [7], 7, 1], "rpc-params"),
        ([*ECHO, "sa{sv}", ["hi", ["count"]], 7, 1], "dbus-signature"),
        ([*ECHO, "sa{sv}", ["hi", {"text": "x"}], 7, 1], "dbus-signature"),
        ([*ECHO, "s", ["x" * 200_000], 7, 1], "dbus-too-large"),
        (["/org/mixos/sample", "org.mixos.Sample1", "Set", "s", ["a"], 7, 1], "role-denied"),
        (["/org/mixos/sample", "org.mixos.Sample1", "Count", "s", ["a"], 7, 1], "dbus-unknown-method"),
        (["/nowhere", None, "Echo", "s", ["a"], 7, 1], "dbus-unknown-object"),
        (["/org/mixos", "org.freedesktop.DBus.Properties", "Get", "ss", ["a"], 7, 1], "dbus-invalid"),
        (["/org/mixos", "org.freedesktop.DBus.Properties", "Get", "s", ["a", "b"], 7, 1], "dbus-invalid"),
        ([], "dbus-invalid"),
        (None, "dbus-invalid"),
        ("text", "dbus-invalid"),
        ({"a": 1}, "dbus-invalid"),
    ],
)
def test_what_a_call_gets(tmp_path, call, expected):
    found = answer(tmp_path, call)
    assert (found[1] if isinstance(found, list) else found) == expected
