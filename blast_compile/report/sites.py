"""Where a model runs sparse ops: each with its own layers, and alike ones together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from blast_compile.backend.capture import GraphRun
from blast_compile.codegen.family import is_mlp
from blast_compile.codegen.spec import Activation, Op
from blast_compile.layers.layer import SparseLayer, operands_of
from blast_compile.ops.call import Call, read_call, write_call
from blast_compile.ops.products import reference
from blast_compile.ops.register import ABI

_PARTS = "its layers are parts of larger ones, split in the graph"


@dataclass(frozen=True)
class Site:
    """One sparse op that ran. names, layers: in the order in which the op takes them. residual: whether it adds one."""

    kind: Op
    names: tuple[str, ...]
    layers: tuple[SparseLayer, ...]
    activation: Activation
    residual: bool
    dtype: torch.dtype

    @property
    def key(self) -> tuple[object, ...]:
        """What alike sites share: all that decides a kernel, and sizes."""
        layers = tuple(
            (layer.shape, layer.block, layer.form, layer.weight.dtype, layer.bias is None) for layer in self.layers
        )
        return (self.kind, self.activation, self.residual, self.dtype, layers)

    @property
    def num_inputs(self) -> int:
        """K of the first layer."""
        return self.layers[0].in_features

    @property
    def num_outputs(self) -> int:
        """N of the last layer."""
        return self.layers[-1].out_features

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of the result, behind those of the hidden layer if any."""
        hidden = (self.layers[0].out_features,) if is_mlp(self.kind) else ()
        return (*hidden, self.num_outputs)

    def inputs(self, tokens: int) -> tuple[Tensor, Tensor | None]:
        """An activation `[M, K]` and a residual `[M, N]`, if the site has one; always the same random ones."""
        device = self.layers[0].weight_operand().device
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(tokens, self.num_inputs, generator=generator).to(device, self.dtype)
        residual = torch.randn(tokens, self.num_outputs, generator=generator).to(device, self.dtype)
        return x, residual if self.residual else None

    def arguments(self, tokens: int = 1) -> Call:
        """Those of the op on random inputs, by what they mean."""
        return self._call(*self.inputs(tokens))

    def run(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The op itself, without gradients."""
        op = getattr(torch.ops.blast, self.kind).nograd
        y: Tensor = op(*write_call(self.kind, self._call(x, residual)), ABI)
        return y

    def _call(self, x: Tensor, residual: Tensor | None) -> Call:
        layers = tuple(map(operands_of, self.layers))
        return Call(x, layers, residual, self.sizes, self.layers[0].block, self.activation)


def sites_of(model: nn.Module, runs: Iterable[GraphRun]) -> tuple[list[list[Site]], list[str]]:
    """Alike sites together, in the order in which they run; and why some ops that ran have none, in words."""
    owners = {
        id(layer.index_operand()): (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, SparseLayer)
    }
    groups: dict[tuple[object, ...], list[Site]] = {}
    left_out: dict[str, None] = {}
    for run in runs:
        for site in _sites(run, owners):
            if isinstance(site, str):
                left_out[site] = None
            else:
                groups.setdefault(site.key, []).append(site)
    return list(groups.values()), list(left_out)


def _sites(run: GraphRun, owners: dict[int, tuple[str, SparseLayer]]) -> Iterator[Site | str]:
    for op in run.ops:
        found = [owners.get(id(index)) for _, index in run.index_of(op)]
        owned = [pair for pair in found if pair is not None]
        if len(owned) < len(found) or len({name for name, _ in owned}) < len(owned):
            yield f"{op.kind} of {', '.join(dict.fromkeys(name for name, _ in owned)) or 'unknown layers'}: {_PARTS}"
            continue
        residual = read_call(op.kind, op.arguments).residual is not None
        names, layers = zip(*owned, strict=True)
        yield Site(op.kind, names, layers, cast(Activation, op.activation), residual, op.result.dtype)


class DenseTwin(nn.Module):
    """A site in plain torch with dense weights, zeros where blocks are dropped: what ours is compared with."""

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.kind, self.activation = site.kind, site.activation
        self.linears = nn.ModuleList(_dense(layer, site.dtype) for layer in site.layers)

    def forward(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """x: `[M, K]`."""
        return reference.compose(self.kind, x, list(self.linears), self.activation, residual)


def _dense(layer: SparseLayer, dtype: torch.dtype) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    weight = reference.dense_weight(layer.weight_operand().detach(), layer.index_operand(), *layer.shape, layer.block)
    linear.weight = nn.Parameter(weight.to(dtype).contiguous(), requires_grad=False)
    if layer.bias is not None:
        linear.bias = nn.Parameter(layer.bias.detach().to(dtype), requires_grad=False)
    return linear
