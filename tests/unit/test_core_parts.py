"""Parts that come up one after the other."""

from types import SimpleNamespace
from typing import Any, cast

from daemon.core.parts import Parts, Source


def test_a_method_of_a_part_that_is_not_up_yet_is_not_unknown() -> None:
    """Those of the system have no dot in their names: `mixctl status` waits for them as for any other."""
    parts = Parts([Source("system", cast(Any, None))], cast(Any, SimpleNamespace()))
    for name in ("status", "system.facts"):
        error = parts.absent(name)
        assert error is not None
        assert error.reason == "part-starting"
        assert error.retryable
    assert parts.absent("other.status") is None
