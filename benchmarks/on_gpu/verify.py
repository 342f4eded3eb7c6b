"""Right before fast: every op against float64, on odd sizes, poisoned memory and repeated runs.

Runs on a GPU, and on CPU tensors where Triton interprets, so that what judges kernels on a GPU is tested without one.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile import launch, layout, ops, reference
from blast_compile.codegen.spec import Op
from blast_compile.kernels import Kernel
from blast_compile.layout import Block

_LIMITS = {torch.float32: 1e-5, torch.float16: 2.0**-9, torch.bfloat16: 2.0**-6}
"""Of the root mean square error: sums in another order for float32; for 16 bits some places, hidden layers rounded."""
_MLPS = ("mlp", "gated_mlp")
_HIDDEN_GRADS = ("hidden_grad", "gated_hidden_grad")
_GRADS = ("input_grad", "weight_grad", *_HIDDEN_GRADS)
_SPLIT_TOKENS = 1100  # of which a weight gradient of few blocks is split

CheckedOp = Op | Literal["hidden_grad", "gated_hidden_grad"]


@dataclass(frozen=True)
class Check:
    """One call to verify. sizes: `(K, hidden, N)`. is_full, is_empty masks besides random ones come by `density`."""

    op: CheckedOp
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
    everything = (*get_args(Op), *_HIDDEN_GRADS)
    for op in everything:
        for form in ("packed", "masked", "transposed"):
            for block in blocks:
                sizes = (5 * block // 2 + 8, 3 * block + 3, 2 * block + block // 4 + 1)
                for dtype in dtypes:
                    for count in tokens:
                        yield Check(op, form, dtype, (block, block), count, sizes)
            for density in (0.0, 1.0):
                yield Check(op, form, dtypes[0], (blocks[0], blocks[0]), tokens[-1], density=density)
            if op == "weight_grad":
                yield Check(op, form, dtypes[0], (blocks[0], blocks[0]), _SPLIT_TOKENS)


def verify(check: Check, device: str, *, runs: int = 3) -> Verdict:
    """Runs a check several times; all results must be right, and equal to the last bit."""
    arguments, truth = _call(check, device)
    with _poisoned_memory():
        results = [_run(check, arguments) for _ in range(runs)]
    kernel = _kernel(check, arguments)
    error, limit = relative_error(results[0], truth), _LIMITS[check.dtype]
    problem = ""
    if not error <= limit:  # NaN is not
        problem = f"expected a relative error of at most {limit:.1e}, got {error:.1e}"
    elif not all(torch.equal(results[0], other) for other in results[1:]):
        problem = "expected the same bits from the same call, got others"
    elif kernel is not None and kernel.name == "reference":
        problem = f"expected a kernel, got none: {kernel.reason}"
    return Verdict(check, kernel.name if kernel else "", error, problem)


def _run(check: Check, arguments: list[Any]) -> Tensor:
    """The result of an op; of two, both, one behind the other."""
    op = getattr(torch.ops.blast, check.op)
    run: Callable[..., Tensor | tuple[Tensor, ...]] = op if check.op in _HIDDEN_GRADS else op.nograd
    result = run(*arguments, ops.ABI)
    return result if isinstance(result, Tensor) else torch.stack(result)


def _kernel(check: Check, arguments: list[Any]) -> Kernel | None:
    """The kernel of an op; None of gradients that nothing describes."""
    return None if check.op in _GRADS[1:] else launch.describe(cast(Op, check.op), *arguments)


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
    if check.op in _GRADS:
        weight, index, clean = _layer(check, (N, K), generator)
        grad = torch.randn(check.tokens, N, generator=generator).to(check.dtype)
        d_hidden = grad.double() @ clean
        if check.op == "input_grad":
            return _moved([grad, weight, index, K, block], device), d_hidden.to(device)
        if check.op != "weight_grad":
            taken = [x] if check.op == "hidden_grad" else [x, torch.randn(x.shape, generator=generator).to(check.dtype)]
            truth = _through_silu(d_hidden, [z.double() for z in taken])
            return _moved([grad, weight, index, *taken, K, block, "silu"], device), truth.to(device)
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


def _through_silu(d_hidden: Tensor, taken: list[Tensor]) -> Tensor:
    """The gradient of `z` from that of `silu(z)`; from that of `silu(gate) * up` those of `gate` and `up`, stacked."""
    leaves = [z.requires_grad_() for z in taken]
    hidden = F.silu(leaves[0]) if len(leaves) == 1 else F.silu(leaves[0]) * leaves[1]
    found = torch.autograd.grad(hidden, leaves, d_hidden)
    return found[0] if len(found) == 1 else torch.stack(found)


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
