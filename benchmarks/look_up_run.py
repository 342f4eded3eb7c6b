"""What one process of the look-up benchmark does: fills a store, or calls a model and times what it looks up."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.first_call import BLOCK
from blast_compile.codegen.spec import Spec
from blast_compile.commands.demo.model import Size, llama
from blast_compile.kernels import shared_objects
from blast_compile.kernels.cpu import _kernels
from blast_compile.kernels.launcher import launcher
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.problem import Problem
from blast_compile.kernels.plans.record import Record
from blast_compile.layers.pack import pack_
from blast_compile.layers.sparsify import BlockSparse, sparsify_
from blast_compile.ops import planning as plans
from blast_compile.tuning.space import space_of


class Clock:
    """Milliseconds of wall and of CPU time inside of functions that it was put around."""

    def __init__(self) -> None:
        self.wall_ms = self.cpu_ms = 0.0
        self.num_calls = 0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*arguments: Any, **named: Any) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return call(*arguments, **named)
            finally:
                self.wall_ms += 1e3 * (time.perf_counter() - wall)
                self.cpu_ms += 1e3 * (time.process_time() - cpu)
                self.num_calls += 1

        return timed


def run(what: str, size: Size) -> dict[str, Any]:
    """Each layer has another number of blocks, and so a plan of its own."""
    model: Any = llama(size, torch.float32)
    for number, layer in enumerate(model.model.layers):
        sparsify_(layer, BlockSparse(block=BLOCK, sparsity=0.5 + 0.4 * number / size.layers, targets="mlp"))
    pack_(model)
    clock = Clock()
    plan, load = plans.plan, clock.around(launcher.load)
    plans.plan = clock.around(plan)
    with torch.no_grad():
        load()
        if what == "fill":
            model(torch.arange(size.prompt)[None], use_cache=False)
            _tune(size)
        else:
            shared_objects.made = _only_found(shared_objects.made)
            model(torch.arange(size.prompt)[None], use_cache=False)
    loaded = len([kernel for kernel in _kernels.values() if kernel.run is not None])
    return {"wall_ms": clock.wall_ms, "cpu_ms": clock.cpu_ms, "plans": clock.num_calls - 1, "kernels": loaded}


def _tune(size: Size) -> None:
    """A plan with another config than the default for both shapes of layers, and its kernel."""
    (spec,) = {spec for spec, _ in _kernels if isinstance(spec, Spec)}
    database = Database.default()
    for shape in ((size.intermediate, size.hidden), (size.hidden, size.intermediate)):
        problem = Problem(spec, (shape,), size.prompt, 0.3, torch.get_num_threads())
        config = next(iter(space_of(problem).neighbours(space_of(problem).default)))
        database.add(Record(problem, repr(config), "chosen", database.device, median_us=1.0, default_us=2.0))
        shared_objects.shared_object(spec, config)


def _only_found(made: Callable[..., Path]) -> Callable[..., Path]:
    def found(key: Any, source: object, what: str) -> Path:  # noqa: ARG001
        return made(key, lambda: sys.exit(f"expected to find {what}, got nothing"), what)

    return found


if __name__ == "__main__":
    print(json.dumps(run(sys.argv[1], Size(**json.loads(sys.argv[2])))))
