"""What ours is compared with: dense cuBLAS always; the block-sparse products of others where they are installed.

Each takes the case and its sparse layers and gives a call of the same product, or raises `UnavailableError` with the
reason. Others have no gated MLP, so they are compared on the linear layer alone.
"""

from __future__ import annotations

import functools
import importlib
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.calls import op_arguments, plain
from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.tensors import SparseLayer
from benchmarks.on_gpu.verify import relative_error
from blast_compile.base import compat
from blast_compile.codegen.triton.build import import_triton
from blast_compile.ops import register

Call = Callable[[], object]
OURS, DENSE = "blast", "dense"
_MOST_ERROR = 2.0**-5  # of a rival's product in 16 bits
_TUNING_S = 5.0  # of another's tuner, for a case
_REFUSALS: tuple[type[Exception], ...] = (
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    LookupError,
    NameError,
)


class UnavailableError(Exception):
    """A rival that cannot run a case."""


def ours(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Call:
    """The op itself, by the dispatcher."""
    arguments = op_arguments(case, x, ((layer.operand, layer.index) for layer in layers))
    run: Callable[..., Tensor] = getattr(torch.ops.blast, case.op).nograd
    return lambda: run(*arguments, register.ABI)


def dense(case: Case, x: Tensor, weights: Sequence[Tensor]) -> Call:
    """cuBLAS; gate and up as one product, activation and product of both in one kernel."""
    if case.op != "gated_mlp":
        return lambda: plain(case, x, weights)
    both, down = torch.cat([weights[0], weights[1]]), weights[2]
    return lambda: F.linear(_silu_product(F.linear(x, both)), down)


@dataclass(frozen=True)
class Rival:
    """A prepared call, and how its result becomes `[tokens, outputs]`: what a model would pay for that is not timed.

    note: what a reader of its row should know.
    """

    call: Call
    read: Callable[[Any], Tensor]
    note: str = ""


def torch_bsr(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Rival:
    """The Triton product of `torch.sparse`, tuned for the shape by its own tuner (checked on torch 2.13)."""
    kernels = _import("torch.sparse._triton_ops")
    meta = _import("torch.sparse._triton_ops_meta")
    weight = layers[0].dense(x.dtype).to_sparse_bsr((case.block, case.block))
    columns = _columns(x)
    zeros = torch.zeros(case.outputs, columns.shape[1], dtype=x.dtype, device=x.device)
    with _tuning_for(_TUNING_S) as tried:
        meta.tune_bsr_dense_addmm(zeros, weight, columns, beta=0, store=True)
    note = f"its tuner tried {len(tried)} configs in {_TUNING_S:.0f} s" if tried else ""
    return Rival(lambda: kernels.bsr_dense_addmm(zeros, weight, columns, beta=0), lambda y: y.t()[: case.tokens], note)


def torchao(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Rival:
    """The block-sparse tensor of torchao (checked on 0.18.0; later ones have none).

    Its linear takes a bias, be it None, and hands tokens to the kernel as they are, which needs 16 or more; it looks up
    what the tuner of torch found for the shape, so it is tuned where `torch_bsr` ran before.
    """
    sparse = _import("torchao.sparsity.blocksparse").BlockSparseTensor
    weight, rows = sparse.from_dense(layers[0].dense(x.dtype), case.block), _columns(x).t()
    return Rival(lambda: F.linear(rows, weight, None), lambda y: y[: case.tokens])


def stk(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Rival:
    """The dense-dense-sparse product of stanford-stk (checked on 0.7.1), whose blocks are 128 wide."""
    if case.block != 128 or case.tokens % 128:
        raise UnavailableError("stk takes blocks of 128 and whole blocks of tokens alone")
    package = _import("stk")
    weight = package.ops.to_sparse(layers[0].dense(x.dtype).t().contiguous(), 128)
    return Rival(lambda: package.ops.dds(x, weight), lambda y: y)


def blksprs(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Rival:
    """The sparse-sparse product of blksprs (checked on 2.5), with every block of the tokens kept.

    What it derives from layouts is kept between calls, and its checks, which read values, are off once it has run.
    """
    if case.tokens % case.block:
        raise UnavailableError("blksprs takes whole blocks of tokens alone")
    package = _import("blksprs")
    dense_weight = layers[0].dense(x.dtype).t().contiguous()[None]
    kept = package.layouting.build_sparsity_layout(dense_weight, case.block)
    weight = package.ops.to_sparse(dense_weight, kept, case.block)
    of_x, of_y = (
        torch.ones(1, case.tokens // case.block, n // case.block, dtype=torch.bool, device=x.device)
        for n in (x.shape[1], case.outputs)
    )
    tokens, cache = package.ops.to_sparse(x[None], of_x, case.block), {}  # type: ignore[var-annotated]

    def call() -> Any:
        return package.ops.matmul(tokens, of_x, weight, kept, of_y, case.block, layout_cache=cache)

    call()
    package.utils.disable_validation()
    return Rival(call, lambda y: package.ops.to_dense(y, of_y, case.block)[0])


RIVALS: dict[str, Callable[[Case, Tensor, Sequence[SparseLayer]], Rival]] = {
    "torch BSR": torch_bsr,
    "torchao": torchao,
    "stk": stk,
    "blksprs": blksprs,
}


def prepare(name: str, case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Rival:
    """A rival, run once; raises `UnavailableError` where it takes no such case, or gives another product."""
    if case.op != "linear":
        raise UnavailableError(f"{name} has no {case.op}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # some call themselves beta, or tell of configs they skip
            rival = RIVALS[name](case, x, layers)
            got = rival.read(rival.call())
    except _refusals() as refusal:
        reason = str(refusal).splitlines() or [""]
        raise UnavailableError(f"{name} does not run {case}: {type(refusal).__name__}: {reason[0][:160]}") from refusal
    error = relative_error(got, F.linear(x, layers[0].dense(x.dtype)))
    if not error <= _MOST_ERROR:
        raise UnavailableError(f"{name} is not timed on {case}: expected the product of dense, got an error of {error}")
    return rival


@contextmanager
def _tuning_for(seconds: float) -> Iterator[list[float]]:
    """Has torch's tuner end in good order after so long, with the best that it found; gives the times that it took.

    Left alone it takes minutes a shape: it warms each config up for half a second, and there are hundreds. One whose
    timing fails it leaves out, so from then on all do.
    """
    testing, ends = _import("triton.testing"), time.monotonic() + seconds
    do_bench, found = testing.do_bench, []

    def limited(run: Callable[[], object], *, warmup: int, rep: int) -> float:
        if time.monotonic() > ends:
            raise TimeoutError
        found.append(float(do_bench(run, warmup=min(warmup, 25), rep=min(rep, 50))))
        return found[-1]

    testing.do_bench = limited
    try:
        yield found
    finally:
        testing.do_bench = do_bench


def _refusals() -> tuple[type[Exception], ...]:
    """What the set-up of somebody else's kernel may raise where it does not take a case."""
    return (*_REFUSALS, import_triton().errors.TritonError) if compat.has_triton() else _REFUSALS


def _columns(x: Tensor) -> Tensor:
    """Tokens as adjacent columns, `[K, tokens]`, so many more that a tensor core takes them."""
    return F.pad(x, (0, 0, 0, -x.shape[0] % 16)).t().contiguous()


@functools.cache
def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UnavailableError(f"{name} is not installed") from error


@functools.cache
def _compiled_silu_product() -> Callable[[Tensor], Tensor]:
    def product(both: Tensor) -> Tensor:
        gate, up = both.chunk(2, dim=-1)
        return F.silu(gate) * up

    return torch.compile(product, dynamic=True)


def _silu_product(both: Tensor) -> Tensor:
    return _compiled_silu_product()(both)
