"""What a Python action gets to see: its inputs, a place to write, and its parameters.

An action is either a shell script or a Python function `def f(job: Job) -> None`. Both run inside the build sandbox:
paths are the same on every machine, there is no network, and only what the action declared is visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """The whole world of one action.

    inputs: name → read-only path, a directory (another action's output tree) or a file (a source, a repository file).
    out:    empty directory; what is in it when the function returns is the action's output.
    work:   empty scratch directory, thrown away on success.
    params: the JSON-like parameters given in the plan; part of the action's key.
    epoch:  SOURCE_DATE_EPOCH in seconds; the only "now" an action may write into its output.
    jobs:   how many processes the action may run at once.
    """

    inputs: Mapping[str, Path]
    out: Path
    work: Path
    params: Mapping[str, Any]
    epoch: int
    jobs: int
