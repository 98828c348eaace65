"""The `mixos` command: one module per verb, each thin: parse, call, print."""

import sys
from pathlib import Path

# Before what PYTHONPATH names: a package there may have the name of one of ours.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
