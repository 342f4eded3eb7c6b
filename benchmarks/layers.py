"""Layers to time: many independent ones in one graph, so that their weights come from memory and not from a cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.problem import Problem
from blast_compile.base.processor import l3_bytes
from blast_compile.layers.layer import SparseLayer
from blast_compile.layers.pack import pack_
from blast_compile.layers.sparsify import BlockSparse, sparsify_
from blast_compile.masks import layout
from blast_compile.masks.mask import BlockMask
from blast_compile.ops.products import reference

_MIN_LAYERS = 6  # entering a compiled graph costs tens of microseconds, shared by its layers


class GatedMlp(nn.Module):
    """`down(silu(gate(x)) * up(x))`, the MLP of Llama."""

    def __init__(self, hidden: int, features: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.gate = nn.Linear(features, hidden, bias=False, dtype=dtype)
        self.up = nn.Linear(features, hidden, bias=False, dtype=dtype)
        self.down = nn.Linear(hidden, features, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[M, K]`."""
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Linear(nn.Module):
    """One projection."""

    def __init__(self, outputs: int, inputs: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, outputs, bias=False, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[M, K]`."""
        y: Tensor = self.proj(x)
        return y


class Stack(nn.Module):
    """Independent layers, each with an input of its own.

    Large results are consumed at once, as in a model, where the next layer takes them and their memory is used again:
    one row of each is kept, chosen at the call, so that what is timed is also what is verified.
    """

    def __init__(self, layers: list[nn.Module], *, keeps_all: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.keeps_all = keeps_all

    def forward(self, x: Tensor, row: Tensor) -> list[Tensor]:
        """x: `[L, M, K]`. row: int64 `[1]`. Results `[M, N]`, or `[1, N]` unless all rows are kept."""
        results = []
        for i, layer in enumerate(self.layers):
            y = layer(x[i])
            results.append(y if self.keeps_all else y.index_select(0, row))
        return results


def dense_stack(problem: Problem) -> Stack:
    """Dense layers with more weights than twice L3."""
    layer_bytes = problem.num_weights * problem.dtype.itemsize
    return stack_of(problem, [dense_layer(problem) for _ in range(num_layers(layer_bytes))])


def packed_stack(problem: Problem, sparsity: float) -> Stack:
    """Packed layers with more kept blocks than twice L3; random masks, as magnitude gives for random weights."""
    source = dense_layer(problem)
    first = pack_(masked_layer(problem, source, sparsity), dense_below=0)
    num_more = num_layers(tensor_bytes(first)) - 1
    rest = [pack_(masked_layer(problem, source, sparsity), dense_below=0) for _ in range(num_more)]
    return stack_of(problem, [first, *rest])


def stack_of(problem: Problem, layers: list[nn.Module]) -> Stack:
    """Layers for inference, in one graph."""
    result_bytes = problem.tokens * problem.outputs * problem.dtype.itemsize
    stack = Stack(layers, keeps_all=result_bytes <= 64 * 2**10)  # under malloc's threshold for fresh pages
    return stack.eval().requires_grad_(False)


def dense_layer(problem: Problem) -> nn.Module:
    """A dense layer of random weights."""
    layer = _empty_layer(problem)
    for linear in _linears(layer):
        values = torch.randn(linear.weight.shape, dtype=torch.float32).mul_(linear.in_features**-0.5)
        linear.weight = nn.Parameter(values.to(problem.dtype), requires_grad=False)
    return layer


def masked_layer(problem: Problem, source: nn.Module, sparsity: float) -> nn.Module:
    """A masked layer with a random mask over a copy of the weights of `source`."""
    layer, masks = _empty_layer(problem), {}
    block = (problem.block, problem.block)
    for name, linear in layer.named_modules():
        if isinstance(linear, nn.Linear):
            shape = (linear.out_features, linear.in_features)
            own = source.get_parameter(f"{name}.weight")
            linear.weight = nn.Parameter(own.detach().clone(), requires_grad=False)
            scores = torch.rand(layout.grid(shape, block))
            masks[name] = BlockMask.from_scores(scores, sparsity, shape, block)
    return sparsify_(layer, BlockSparse(block=block, targets="all"), masks=masks)


def num_layers(layer_bytes: int) -> int:
    """Layers that one pass must go through for its weights to exceed twice L3."""
    return max(_MIN_LAYERS, 2 * l3_bytes() // max(layer_bytes, 1) + 1)


def tensor_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in (*module.parameters(), *module.buffers()))


def plain_twin(layer: nn.Module, problem: Problem, dtype: torch.dtype) -> nn.Module:
    """A dense layer of the same values, in `dtype`, from the plain-torch reference."""
    twin = _empty_layer(problem)
    for name, child in layer.named_modules():
        if isinstance(child, nn.Linear | SparseLayer):
            weight = _reference_weight(child).to(dtype)
            twin.get_submodule(name).weight = nn.Parameter(weight, requires_grad=False)
    return twin


def _reference_weight(layer: nn.Linear | SparseLayer) -> Tensor:
    if not isinstance(layer, SparseLayer):
        return layer.weight.detach()
    return reference.dense_weight(layer.weight.detach(), layer.index_operand(), *layer.shape, layer.block)


def _empty_layer(problem: Problem) -> nn.Module:
    with torch.device("meta"):
        return (GatedMlp if problem.op == "gated_mlp" else Linear)(*problem.shape, problem.dtype)


def _linears(module: nn.Module) -> Iterator[nn.Linear]:
    return (child for child in module.modules() if isinstance(child, nn.Linear))
