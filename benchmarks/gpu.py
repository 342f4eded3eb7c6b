"""The command: `python benchmarks/gpu.py --help`. Needs this repository, torch with CUDA or ROCm, and Triton."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parents[1])  # run as a script, Python puts benchmarks/ there, not its parent
    from benchmarks.on_gpu.command import main

    sys.exit(main())
