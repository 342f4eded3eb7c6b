"""The ops in plain torch for GPUs, where no kernel serves a call: as `reference.py`, but the host never waits.

The reference checks an index, for which it must read it, and no CUDA graph can hold that. Here entries beyond the grid
are dropped instead, on the device.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.codegen.spec import Op
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.ops.call import Call
from blast_compile.ops.products import reference


def product(op: Op, call: Call) -> Tensor:
    """A forward product or an input gradient; a new tensor."""
    x, layers, block = call.x, call.layers, call.block
    if op == "input_grad":
        weight, index, _ = layers[0]
        return x @ dense_weight(weight, index, (x.shape[-1], call.sizes[0]), block).to(x.dtype)
    features = [call.sizes[0]] * len(layers)
    features[-1] = call.sizes[-1]
    linears = [
        partial(_linear, layer=layer, out_features=N, block=block) for layer, N in zip(layers, features, strict=True)
    ]
    y = reference.compose(op, x, linears, call.activation, call.residual)
    return y.clone() if y._is_view() else y  # autograd would forbid its owner to write into a view


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Block) -> Tensor:
    """`grad.T @ x` on kept blocks, zeros elsewhere, in form, strides and dtype of `weight`."""
    dense = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    shape = (dense.shape[0], dense.shape[1])
    if weight.dim() == 2:
        kept = layout.spread(index != 0, shape, block)
        return torch.empty_like(weight).copy_(torch.where(kept, dense, dense.new_zeros(())))
    blocks = layout.to_blocks(dense, block)
    R, C = blocks.shape[:2]
    rows, columns, is_kept = _packed_entries(index, (R, C))
    chosen = blocks[rows.clamp(max=R - 1), columns.clamp(0, C - 1)]
    return torch.empty_like(weight).copy_(torch.where(is_kept[:, None, None], chosen, chosen.new_zeros(())))


def block_norms(grad: Tensor, x: Tensor, probe: Tensor, block: Block) -> Tensor:
    """Frobenius norms of the blocks of `grad.T @ x` where `probe` `[R, C]` is not zero, zeros elsewhere."""
    dense = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    precision = torch.promote_types(dense.dtype, torch.float32)
    norms = layout.to_blocks(dense, block).to(precision).flatten(2).norm(dim=-1).to(probe.dtype)
    return torch.where(probe != 0, norms, torch.zeros_like(probe))


def dense_weight(weight: Tensor, index: Tensor, shape: tuple[int, int], block: Block) -> Tensor:
    """`W * mask` as a dense `[N, K]`, from either form."""
    R, C = layout.grid(shape, block)
    (N, K), (bn, bk) = shape, block
    if weight.dim() == 2:
        kept = layout.spread(index != 0, shape, block)
        return torch.where(kept, weight, weight.new_zeros(()))
    rows, columns, is_kept = _packed_entries(index, (R, C))
    place = torch.where(is_kept, rows * C + columns, R * C)  # one more block takes what is not kept
    blocks = weight.new_zeros(R * C + 1, bk, bn).index_copy(0, place, weight)[:-1]
    return blocks.view(R, C, bk, bn).permute(0, 3, 1, 2).reshape(R * bn, C * bk)[:N, :K]


def _linear(x: Tensor, layer: tuple[Tensor, Tensor, Tensor | None], out_features: int, block: Block) -> Tensor:
    weight, index, bias = layer
    dense = dense_weight(weight, index, (out_features, x.shape[-1]), block).to(x.dtype)
    return F.linear(x, dense, None if bias is None else bias.to(x.dtype))


def _packed_entries(index: Tensor, blocks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Row, column and whether it counts, of each stored block."""
    R, C = blocks
    offsets, _, columns = (part.long() for part in layout.split_index(index, R))
    storage = torch.arange(columns.numel(), device=index.device)
    rows = torch.searchsorted(offsets, storage, right=True) - 1
    is_kept: Any = (rows >= 0) & (rows < R) & (columns >= 0) & (columns < C)
    return rows.clamp(min=0), columns, is_kept
