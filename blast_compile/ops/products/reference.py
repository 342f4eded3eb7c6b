"""The truth: every op in plain torch, for tests, for benchmarks, and where no kernel exists.

Same names, arguments and shapes as the ops in `register.py` (without `abi`). A weight is dense `[N, K]` and `index` its
mask `[R, C]`, or it is packed values `[nnz, bk, bn]` with their index; see `layout.py`. `x` is `[..., K]`, results are
`[..., N]` in the dtype of `x`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.codegen.family import FORWARD
from blast_compile.codegen.spec import Op
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.ops.activations import ACTIVATIONS

_CHUNK = 2**20  # elements of a dense gradient that are in memory at a time


def dense_weight(weight: Tensor, index: Tensor, out_features: int, in_features: int, block: Block) -> Tensor:
    """`W * mask` as a dense `[N, K]`, from either form."""
    shape = (out_features, in_features)
    if weight.dim() == 3:
        return layout.unpack(weight, index, shape, block)
    kept = layout.kept_blocks(index, layout.grid(shape, block))
    return torch.where(layout.spread(kept, shape, block), weight, weight.new_zeros(()))


def compose(
    op: Op, x: Tensor, linears: Sequence[Callable[[Tensor], Tensor]], activation: str, residual: Tensor | None
) -> Tensor:
    """A forward product of any linear maps, in the order in which the op takes its layers."""
    y = ACTIVATIONS[activation](linears[0](x))
    if FORWARD[op].is_gated:
        y = y * linears[1](x)
    if FORWARD[op].is_mlp:
        y = linears[-1](y)
    return y if residual is None else y + residual


def linear(
    x: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None, residual: Tensor | None,
    out_features: int, block: Block, activation: str,
) -> Tensor:  # fmt: skip
    """`activation(x @ (W * mask).T + bias) + residual`."""
    dense = dense_weight(weight, index, out_features, x.shape[-1], block).to(x.dtype)
    y = ACTIVATIONS[activation](F.linear(x, dense, None if bias is None else bias.to(x.dtype)))
    return y if residual is None else y + residual


def gated_linear(
    x: Tensor, gate_weight: Tensor, gate_index: Tensor, gate_bias: Tensor | None,
    up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None, out_features: int, block: Block, activation: str,
) -> Tensor:  # fmt: skip
    """`activation(gate(x)) * up(x)`."""
    gate = linear(x, gate_weight, gate_index, gate_bias, None, out_features, block, activation)
    return gate * linear(x, up_weight, up_index, up_bias, None, out_features, block, "identity")


def mlp(
    x: Tensor, up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None,
    down_weight: Tensor, down_index: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    hidden_features: int, out_features: int, block: Block, activation: str,
) -> Tensor:  # fmt: skip
    """`down(activation(up(x))) + residual`."""
    hidden = linear(x, up_weight, up_index, up_bias, None, hidden_features, block, activation)
    return linear(hidden, down_weight, down_index, down_bias, residual, out_features, block, "identity")


def gated_mlp(
    x: Tensor, gate_weight: Tensor, gate_index: Tensor, gate_bias: Tensor | None,
    up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None,
    down_weight: Tensor, down_index: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    hidden_features: int, out_features: int, block: Block, activation: str,
) -> Tensor:  # fmt: skip
    """`down(activation(gate(x)) * up(x)) + residual`."""
    gate, up = (gate_weight, gate_index, gate_bias), (up_weight, up_index, up_bias)
    hidden = gated_linear(x, *gate, *up, hidden_features, block, activation)
    return linear(hidden, down_weight, down_index, down_bias, residual, out_features, block, "identity")


def input_grad(grad: Tensor, weight: Tensor, index: Tensor, in_features: int, block: Block) -> Tensor:
    """`grad @ (W * mask)`, `[..., K]`."""
    dense = dense_weight(weight, index, grad.shape[-1], in_features, block)
    return grad @ dense.to(grad.dtype)


def weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Block) -> Tensor:
    """`grad.T @ x` on kept blocks, zeros elsewhere, in form, strides and dtype of `weight`, whose values are unread."""
    dense = grad.reshape(-1, grad.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
    shape = (dense.shape[0], dense.shape[1])
    kept = layout.kept_blocks(index, layout.grid(shape, block))
    if weight.dim() == 3:
        blocks, first = layout.pack(dense, kept, block).to(weight.dtype), int(index[0])
        num_behind = weight.shape[0] - first - blocks.shape[0]
        return F.pad(blocks, (0, 0, 0, 0, first, num_behind))  # spare blocks have no gradient
    # Not a product with zeros: what is not finite outside the kept blocks would become NaN there.
    return torch.empty_like(weight).copy_(torch.where(layout.spread(kept, shape, block), dense, 0.0))


def block_norms(grad: Tensor, x: Tensor, probe: Tensor, block: Block) -> Tensor:
    """Frobenius norms of the blocks of `grad.T @ x` where `probe` `[R, C]` is not zero, zeros elsewhere; as `probe`.

    Computes nothing for a probe of zeros, and else holds a few block rows of the dense product at a time.
    """
    norms = torch.zeros_like(probe)
    if not probe.any():
        return norms
    grad_MN, x_MK = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    (R, C), (bn, bk), K = probe.shape, block, x.shape[-1]
    step = max(1, _CHUNK // (bn * K))
    for first in range(0, R, step):
        last = min(first + step, R)
        rows = grad_MN[:, first * bn : last * bn].t() @ x_MK
        blocks = F.pad(rows, (0, C * bk - K, 0, (last - first) * bn - rows.shape[0])).view(last - first, bn, C, bk)
        precision = torch.promote_types(rows.dtype, torch.float32)
        norms[first:last] = torch.linalg.vector_norm(blocks, dim=(1, 3), dtype=precision)
    return norms.masked_fill_(probe == 0, 0)
