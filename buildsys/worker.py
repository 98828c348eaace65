"""Runs one Python action inside the sandbox: reads /mixos/call.json, calls the function, prints its error."""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

sys.path[:0] = ["/mixos/src", "/mixos/site"]


def main() -> int:
    """0, or 1 after printing what went wrong: one plain message for expected failures, a traceback for defects."""
    from buildsys.job import Job
    from common.errors import MixosError

    call = json.loads(Path("/mixos/call.json").read_bytes())
    module, _, name = call["function"].partition(":")
    job = Job(
        inputs={key: Path(value) for key, value in call["inputs"].items()},
        out=Path("/out"),
        work=Path("/build"),
        params=call["params"],
        epoch=int(os.environ["SOURCE_DATE_EPOCH"]),
        jobs=call["jobs"],
    )
    try:
        getattr(import_module(module), name)(job)
    except MixosError as error:
        print(
            f"error [{error.reason}]: {error.message}" + (f"\nhint: {error.hint}" if error.hint else ""),
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
