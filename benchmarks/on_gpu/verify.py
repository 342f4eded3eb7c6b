"""Right before fast: every op against float64, on odd sizes, poisoned memory and repeated runs.

Runs on a GPU, and on CPU tensors where Triton interprets, so that what judges kernels on a GPU is tested without one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile import launch, layout, ops, reference
from blast_compile.codegen.spec import Op
from blast_compile.layout import Block

_LIMITS = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
"""Of the root mean square error: sums in another order for float32; for 16 bits some places, hidden layers rounded."""
_MLPS = ("mlp", "gated_mlp")


@dataclass(frozen=True)
class Check:
    """One call to verify. sizes: `(K, hidden, N)`. is_full, is_empty masks besides random ones come by `density`."""

    op: Op
    layout: str
    dtype: torch.dtype
    block: Block
    tokens: int
    sizes: tuple[int, int, int] = (200, 168, 136)
    density: float = 0.4

    def __str__(self) -> str:
        """What reports call it."""
        dtype = str(self.dtype).removeprefix("torch.")
        what = f"{self.op}, {self.layout}, {dtype}, block {self.block[0]}x{self.block[1]}, {self.tokens} tokens"
        return f"{what}, sizes {self.sizes}, {self.density:.0%} kept"


@dataclass(frozen=True)
class Verdict:
    """error: relative to float64, not a number where something was left unwritten. problem: "" where all is well."""

    check: Check
    kernel: str
    error: float
    problem: str


def checks(dtypes: tuple[torch.dtype, ...], blocks: tuple[int, ...], tokens: tuple[int, ...]) -> Iterator[Check]:
    """Every op in every layout, at odd numbers of tokens, and full and empty masks."""
    everything: tuple[Op, ...] = ("linear", "gated_linear", "mlp", "gated_mlp", "input_grad", "weight_grad")
    for op in everything:
        for form in ("packed", "masked", "transposed"):
            for block in blocks:
                sizes = (5 * block // 2 + 8, 3 * block + 3, 2 * block + block // 4 + 1)
                for dtype in dtypes:
                    for count in tokens:
                        yield Check(op, form, dtype, (block, block), count, sizes)
            for density in (0.0, 1.0):
                yield Check(op, form, dtypes[0], (blocks[0], blocks[0]), tokens[-1], density=density)


def verify(check: Check, device: str, *, runs: int = 3) -> Verdict:
    """Runs a check several times; all results must be right, and equal to the last bit."""
    arguments, truth = _call(check, device)
    kernel = "" if check.op == "weight_grad" else launch.describe(check.op, *arguments).name
    with _poisoned_memory():
        run: Callable[..., Tensor] = getattr(torch.ops.blast, check.op).nograd
        results = [run(*arguments, ops.ABI) for _ in range(runs)]
    error, limit = relative_error(results[0], truth), _LIMITS[check.dtype]
    problem = ""
    if not error <= limit:  # NaN is not
        problem = f"expected a relative error of at most {limit:.1e}, got {error:.1e}"
    elif not all(torch.equal(results[0], other) for other in results[1:]):
        problem = "expected the same bits from the same call, got others"
    elif kernel == "reference":
        problem = f"expected a kernel, got none: {launch.describe(check.op, *arguments).reason}"
    return Verdict(check, kernel, error, problem)


def relative_error(got: Tensor, truth: Tensor) -> float:
    """Root mean square of the difference, over that of the truth."""
    if got.shape != truth.shape:
        return float("nan")
    scale = float(truth.double().norm())
    difference = float((got.double() - truth.double()).norm())
    return difference / scale if scale else difference


@contextmanager
def _poisoned_memory() -> Iterator[None]:
    """Makes fresh memory NaN, so that an unwritten output is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _call(check: Check, device: str) -> tuple[list[Any], Tensor]:
    """Arguments of the op, in the order of `reference.py`, and the truth in float64."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(check).encode()))
    K, hidden, N = check.sizes
    if check.op not in _MLPS:
        hidden = N
    x = torch.randn(check.tokens, K, generator=generator).to(check.dtype)
    block = list(check.block)
    if check.op in ("input_grad", "weight_grad"):
        weight, index, clean = _layer(check, (N, K), generator)
        grad = torch.randn(check.tokens, N, generator=generator).to(check.dtype)
        if check.op == "input_grad":
            return _moved([grad, weight, index, K, block], device), (grad.double() @ clean).to(device)
        truth = reference.weight_grad(grad.double(), x.double(), _zeros_like(weight), index, check.block)
        return _moved([grad, x, weight, index, block], device), truth.to(device)
    is_gated, is_mlp = check.op.startswith("gated"), check.op in _MLPS
    shapes = [(hidden, K)] * (2 if is_gated else 1) + ([(N, hidden)] if is_mlp else [])
    arguments: list[Any] = [x]
    cleans, biases = [], []
    for shape in shapes:
        weight, index, clean = _layer(check, shape, generator)
        bias = torch.randn(shape[0], generator=generator).to(check.dtype)
        arguments += [weight, index, bias]
        cleans.append(clean)
        biases.append(bias.double())
    first = (
        [F.linear(x.double(), w, b) for w, b in zip(cleans[:2], biases[:2], strict=True)]
        if is_gated
        else [F.linear(x.double(), cleans[0], biases[0])]
    )
    truth = F.silu(first[0]) * first[1] if is_gated else F.silu(first[0])
    if is_mlp:
        truth = F.linear(truth, cleans[-1], biases[-1])
    if check.op != "gated_linear":
        residual = torch.randn(check.tokens, N, generator=generator).to(check.dtype)
        arguments.append(residual)
        truth = truth + residual.double()
    sizes = [hidden, N] if is_mlp else [N]
    return _moved([*arguments, *sizes, block, "silu"], device), truth.to(device)


def _layer(check: Check, shape: tuple[int, int], generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Operand, index and the clean weight in float64; what must not be read is NaN."""
    R, C = layout.grid(shape, check.block)
    kept = torch.rand(R, C, generator=generator) < check.density
    weight = (torch.randn(shape, generator=generator) * shape[1] ** -0.5).to(check.dtype)
    is_kept = layout.spread(kept, shape, check.block)
    clean, poisoned = torch.where(is_kept, weight.double(), 0.0), weight.masked_fill(~is_kept, float("nan"))
    if check.layout == "packed":
        return layout.pack(poisoned, kept, check.block), layout.packed_index(kept), clean
    operand = poisoned.t().contiguous().t() if check.layout == "transposed" else poisoned
    return operand, layout.masked_index(kept), clean


def _zeros_like(weight: Tensor) -> Tensor:
    return torch.zeros_like(weight, dtype=torch.float64)


def _moved(arguments: list[Any], device: str) -> list[Any]:
    return [a.to(device) if isinstance(a, Tensor) else a for a in arguments]
