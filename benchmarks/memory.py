"""What a call allocates at most, as torch's own allocator counts it: the same in every run."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

_CPU = 0  # of the "Device Type" in a trace


@dataclass(frozen=True)
class Allocated:
    """peak_bytes: the most that a call held above what there was before. kept_bytes: what was left of it at the end."""

    peak_bytes: int
    kept_bytes: int


def allocated(call: Callable[[], object]) -> Allocated:
    """Runs `call` once; its result is kept. Scratch that a kernel takes for itself is not seen."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = call()
    with tempfile.TemporaryDirectory(prefix="blast-memory-") as folder:
        path = Path(folder, "trace.json")
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    del result
    changes = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == _CPU]
    changes.sort(key=lambda event: float(event["ts"]))
    totals = list(accumulate((int(event["args"]["Bytes"]) for event in changes), initial=0))
    return Allocated(max(totals), totals[-1])
