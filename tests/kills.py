"""Work that is killed at one of its steps, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Callable

from daemon.core.change.files import Step

KILLED = 9


def killed(work: Callable[[Step], None], number: int) -> bool:
    """Do `work` in a process that is killed at its `number`th step; whether it came so far."""
    process = os.fork()
    if process == 0:
        steps = iter(range(number))

        def step(_: str) -> None:
            if next(steps, None) is None:
                os._exit(KILLED)

        code = 1
        try:
            work(step)
            code = 0
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, KILLED), "the work itself failed"
    return status == KILLED
