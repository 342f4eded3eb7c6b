"""Times work on a GPU: by its own clock, warm, with weights that no cache holds, in graphs, candidates in turns.

A candidate is a list of calls, each on weights of its own, so many that together they exceed twice the L2 cache; one
pass runs them all. Where the weights of one call exceed that, one is enough. Passes are captured as CUDA graphs, so
that what a host needs for a launch is left out of every candidate's time; what cannot be captured is timed as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from blast_compile.tuning.timing import Timing

_WARM_PASSES = 3
_LEAST_US = 200.0  # of what is timed at once: an event is good to about a microsecond

Calls = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Measured:
    """timing: of one call. is_graph: whether it ran as a CUDA graph."""

    timing: Timing
    is_graph: bool

    @property
    def note(self) -> str:
        """What a reader of its row should know."""
        return "" if self.is_graph else "not as a graph"


def num_copies(weight_bytes: int, l2_bytes: int) -> int:
    """Calls with weights of their own that one pass needs for no cache to hold them."""
    return max(1, -(-2 * l2_bytes // max(weight_bytes, 1)))


def measure(candidates: Mapping[str, Calls], *, rounds: int, seconds: float) -> dict[str, Measured]:
    """Times the candidates in turns, each round starting with another; at least `rounds`, at most for `seconds`."""
    passes = {name: _pass(calls) for name, calls in candidates.items()}
    times_us: dict[str, list[float]] = {name: [] for name in passes}
    repeats = {name: _repeats(run) for name, (run, _) in passes.items()}
    one_round_us = sum(_once_us(passes[name][0], repeats[name]) for name in passes)
    num_rounds = max(rounds, min(100, int(seconds * 1e6 / max(one_round_us, 1.0))))
    names = list(passes)
    for number in range(num_rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            spent = _once_us(passes[name][0], repeats[name])
            times_us[name].append(spent / (repeats[name] * len(candidates[name])))
    return {name: Measured(Timing.of(times_us[name]), is_graph) for name, (_, is_graph) in passes.items()}


def _pass(calls: Calls) -> tuple[Callable[[], None], bool]:
    """All calls once, warmed up; as a CUDA graph where they can be captured."""

    def run() -> None:
        for call in calls:
            call()

    own, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(own)
    with torch.cuda.stream(side):
        for _ in range(_WARM_PASSES):
            run()
    own.wait_stream(side)
    torch.cuda.synchronize()  # an error of a kernel is raised here, and not taken for one of the capture
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # it reads values, or allocates in ways that no graph holds
        torch.cuda.set_stream(own)  # a capture that fails to end leaves its own behind
        torch.cuda.synchronize()
        return run, False
    return graph.replay, True


def _repeats(run: Callable[[], None]) -> int:
    once = _once_us(run, 1)
    return max(1, round(_LEAST_US / max(once, 1.0)))


def _once_us(run: Callable[[], None], repeats: int) -> float:
    def often() -> None:
        for _ in range(repeats):
            run()

    return elapsed_us(often)


def elapsed_us(run: Callable[[], object]) -> float:
    """What the GPU spends on what `run` launches, by its own clock."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    start.record()
    run()
    end.record()
    end.synchronize()
    return float(1e3 * start.elapsed_time(end))
