"""Right before fast: every op against float64, on odd sizes, poisoned memory and repeated runs.

Runs on a GPU, and on CPU tensors where Triton interprets, so that what judges kernels on a GPU is tested without one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.gpu_static.variants import departing
from benchmarks.on_gpu.checks import GRADS, HIDDEN_GRADS, Check
from benchmarks.on_gpu.isolated import Give
from benchmarks.on_gpu.problems import problem
from blast_compile.codegen.spec import Op, Spec
from blast_compile.codegen.triton.build import import_triton
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.kernels.gpu import find
from blast_compile.kernels.gpu.find import GpuKernel
from blast_compile.kernels.kernel import Kernel
from blast_compile.ops import planning, register

_LIMITS = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
"""Of the root mean square error: sums in another order for float32; for 16 bits some places, hidden layers rounded."""


@dataclass(frozen=True)
class Verdict:
    """error: relative to float64, not a number where something was left unwritten. problem: "" where all is well.

    config: at which it went wrong, where a check is varied. num_configs: that were tried.
    """

    check: Check
    kernel: str
    error: float
    problem: str
    config: TritonConfig | None = None
    num_configs: int = 1


def work(check: Check, give: Give, *, where: str) -> None:
    """Gives the verdict on a check. where: torch's device."""
    torch.set_num_threads(2)  # of a process among others
    give(verify(check, where))


def verify(check: Check, device: str, *, runs: int = 3) -> Verdict:
    """Runs a check several times; all results must be right, and equal to the last bit."""
    arguments, truth = problem(check, device)
    kernel = _kernel(check, arguments)
    if kernel is not None and kernel.name == "reference":
        return Verdict(check, kernel.name, float("nan"), f"expected a kernel, got none: {kernel.reason}")
    name = kernel.name if kernel else ""
    if not check.is_varied:
        return Verdict(check, name, *_judged(check, arguments, truth, runs))
    assert isinstance(kernel, GpuKernel)
    spec = kernel.mlp or kernel.steps[0]
    worst, tried = 0.0, 0
    for config in departing(spec, check.tokens):
        with _chosen(spec, check.tokens, config):
            try:
                error, found = _judged(check, arguments, truth, runs)
            except import_triton().runtime.errors.OutOfResources:
                continue  # the search leaves such a config out
        worst, tried = max(worst, error), tried + 1
        if found:
            return Verdict(check, name, error, found, config, tried)
    return Verdict(check, name, worst, "" if tried else "expected a config that fits, got none", num_configs=tried)


def relative_error(got: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference, over that of the truth."""
    if got.shape != truth.shape:
        return float("nan")
    scale = float(truth.double().norm())
    difference = float((got.double() - truth.double()).norm())
    return difference / scale if scale else difference


def _judged(check: Check, arguments: Sequence[Any], truth: Tensor, runs: int) -> tuple[float, str]:
    """The error of an op as it is chosen now, and what is wrong with it."""
    with _poisoned_memory():
        results = [_run(check, arguments) for _ in range(runs)]
    error, limit = relative_error(results[0], truth), _LIMITS[check.dtype]
    if not error <= limit:  # NaN is not
        return error, f"expected a relative error of at most {limit:.1e}, got {error:.1e}"
    if not all(torch.equal(results[0], other) for other in results[1:]):
        return error, "expected the same bits from the same call, got others"
    return error, ""


def _run(check: Check, arguments: Sequence[Any]) -> Tensor:
    """The result of an op; of two, both, one behind the other."""
    op = getattr(torch.ops.blast, check.op)
    run: Callable[..., Tensor | tuple[Tensor, ...]] = op if check.op in HIDDEN_GRADS else op.nograd
    result = run(*arguments, register.ABI)
    return result if isinstance(result, Tensor) else torch.stack(result)


def _kernel(check: Check, arguments: Sequence[Any]) -> Kernel | None:
    """The kernel of an op; None of gradients that nothing describes."""
    if check.op == "weight_grad":
        return planning.plan_weight_grad(*arguments).kernel
    return None if check.op in GRADS[1:] else planning.describe(cast(Op, check.op), *arguments)


@contextmanager
def _chosen(spec: Spec, tokens: int, config: TritonConfig) -> Iterator[None]:
    """Has a kernel run at a config."""
    find.choose(spec, tokens, config)
    try:
        yield
    finally:
        find.forget()


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Makes fresh memory NaN, so that an unwritten output is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
