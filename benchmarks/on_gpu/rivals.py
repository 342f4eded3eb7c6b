"""What ours is compared with: dense cuBLAS always; the block-sparse products of others where they are installed.

Each takes the case and its sparse layers and gives a call of the same product, or raises `UnavailableError` with the
reason. Others have no gated MLP, so they are compared on the linear layer alone.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.on_gpu.cases import Case
from benchmarks.on_gpu.tensors import SparseLayer
from blast_compile import ops

Call = Callable[[], object]
OURS, DENSE = "blast", "dense"
# What the set-up of somebody else's kernel may raise where it does not take a case.
_REFUSALS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, NameError)


class UnavailableError(Exception):
    """A rival that cannot run a case."""


def ours(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Call:
    """The op itself, by the dispatcher."""
    operands = [part for layer in layers for part in (layer.operand, layer.index, None)]
    block = [case.block, case.block]
    hidden = [case.shape.hidden] if case.op != "linear" else []
    run: Callable[..., Tensor] = getattr(torch.ops.blast, case.op).nograd
    activation = "identity" if case.op == "linear" else "silu"
    return lambda: run(x, *operands, None, *hidden, case.outputs, block, activation, ops.ABI)


def dense(case: Case, x: Tensor, weights: Sequence[Tensor]) -> Call:
    """cuBLAS; gate and up as one product, activation and product of both in one kernel."""
    if case.op == "linear":
        return lambda: F.linear(x, weights[0])
    if case.op == "mlp":
        return lambda: F.linear(F.silu(F.linear(x, weights[0])), weights[1])
    both, down = torch.cat([weights[0], weights[1]]), weights[2]
    return lambda: F.linear(_silu_product(F.linear(x, both)), down)


def torch_bsr(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Call:
    """The Triton product of `torch.sparse`, tuned for the shape by its own tuner."""
    kernels = _import("torch.sparse._triton_ops")
    meta = _import("torch.sparse._triton_ops_meta")
    weight = layers[0].dense(x.dtype).to_sparse_bsr((case.block, case.block))
    columns = F.pad(x, (0, 0, 0, -case.tokens % 16)).t().contiguous()
    zeros = torch.zeros(case.outputs, columns.shape[1], dtype=x.dtype, device=x.device)
    meta.tune_bsr_dense_addmm(zeros, weight, columns, beta=0, store=True)
    return lambda: kernels.bsr_dense_addmm(zeros, weight, columns, beta=0)


def torchao(_case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Call:
    """The block-sparse tensor of torchao 0.18 and before; later ones have none."""
    sparse = _import("torchao.sparsity.blocksparse").BlockSparseTensor
    weight = sparse.from_dense(layers[0].dense(x.dtype), _case.block)
    return lambda: F.linear(x, weight)


def stk(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Call:
    """The dense-dense-sparse product of stanford-stk, whose blocks are 128 wide."""
    if case.block != 128 or case.tokens % 128:
        raise UnavailableError("stk takes blocks of 128 and whole blocks of tokens alone")
    package = _import("stk")
    weight = package.ops.to_sparse(layers[0].dense(x.dtype).t().contiguous(), 128)
    return lambda: package.ops.dds(x, weight)


def blksprs(case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Call:
    """The sparse-sparse product of blksprs, with every block of the tokens kept."""
    if case.tokens % case.block:
        raise UnavailableError("blksprs takes whole blocks of tokens alone")
    package = _import("blksprs")
    dense_weight = layers[0].dense(x.dtype).t().contiguous()[None]
    kept = package.layouting.build_sparsity_layout(dense_weight, case.block)
    weight = package.ops.to_sparse(dense_weight, kept, case.block)
    full = [
        torch.ones(1, case.tokens // case.block, n // case.block, device=x.device) for n in (x.shape[1], case.outputs)
    ]
    tokens = package.ops.to_sparse(x[None], full[0], case.block)
    return lambda: package.ops.matmul(tokens, full[0], weight, kept, full[1], case.block)


RIVALS: dict[str, Callable[[Case, Tensor, Sequence[SparseLayer]], Call]] = {
    "torch BSR": torch_bsr,
    "torchao": torchao,
    "stk": stk,
    "blksprs": blksprs,
}


def prepare(name: str, case: Case, x: Tensor, layers: Sequence[SparseLayer]) -> Call:
    """A rival's call, run once; raises `UnavailableError` where it takes no such case."""
    if case.op != "linear":
        raise UnavailableError(f"{name} has no {case.op}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # some call themselves beta, or tell of configs they skip
            call = RIVALS[name](case, x, layers)
            call()
    except _REFUSALS as error:
        reason = str(error).splitlines() or [""]
        raise UnavailableError(f"{name} does not run {case}: {type(error).__name__}: {reason[0][:160]}") from error
    return call


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
