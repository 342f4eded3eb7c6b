"""The command: `python benchmarks/run.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # run as a script, Python puts benchmarks/ there, not its parent
    from benchmarks.commands import app

    app()
