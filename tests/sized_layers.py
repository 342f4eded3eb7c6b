"""Layers of a Transformer that keep different numbers of blocks, and the ways to compile each by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

import blast_compile as blast
from blast_compile import passes
from blast_compile.base import compat
from blast_compile.passes.vocabulary import describe
from tests.nets import Counted

BLOCK = 4  # blocks under 8 run on the reference: these tests need no compiled kernel
NUM_LAYERS = 12
NAMES = ("gate", "up", "down")


class Layer(nn.Module):
    """A gated MLP with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return y


class Fused(nn.Module):
    """The same with gate and up in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Linear(32, 96), nn.Linear(48, 32)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        y: Tensor = x + self.down(F.silu(gate) * up)
        return y


class Peeking(Layer):
    """Reads a weight before the layer does, as T5 reads its dtype."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.down.weight.dtype))


class Named(nn.Module):
    """A layer by a name that no expression may hold as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a, [z-b] (*:0": Layer()})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.parts["a, [z-b] (*:0"](x)
        return y


def layer_of(kept: int | dict[str, int], kind: type[nn.Module] = Layer) -> Any:
    """A packed layer; of the 96 or more blocks of each of its linears, `kept` are kept."""
    layer = kind()
    masks = {}
    for name, linear in layer.named_modules():
        if not isinstance(linear, nn.Linear):
            continue
        shape = (linear.out_features, linear.in_features)
        num_blocks = linear.weight.numel() // BLOCK**2
        num_kept = kept if isinstance(kept, int) else kept[name.rpartition(".")[2]]
        masks[name] = blast.BlockMask(
            (torch.randperm(num_blocks) < num_kept).view(shape[0] // BLOCK, -1), shape, (BLOCK, BLOCK)
        )
    return blast.pack_(blast.sparsify_(layer, masks=masks), dense_below=0.0)


def layers_of(kept: Iterable[int | dict[str, int]], kind: type[nn.Module] = Layer) -> list[Any]:
    torch.manual_seed(0)
    return [layer_of(number, kind) for number in kept]


def layers_of_many_sizes(kind: type[nn.Module] = Layer) -> list[Any]:
    layers = layers_of(range(10, 10 + 6 * NUM_LAYERS, 6), kind)
    assert len({next(layer.parameters()).shape[0] for layer in layers}) == NUM_LAYERS
    return layers


def run(calls: Sequence[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for call in calls:
        x = call(x)
    return x


def by_method(layers: list[Any], backend: Any) -> list[Any]:
    for layer in layers:
        layer.compile(backend=backend)
    return layers


def by_function(layers: list[Any], backend: Any) -> list[Any]:
    return [torch.compile(layer, backend=backend) for layer in layers]


def by_closure(layers: list[Any], backend: Any) -> list[Any]:
    def closure(layer: Any) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            y: Tensor = layer(x)
            return y

        return call

    return [torch.compile(closure(layer), backend=backend) for layer in layers]


def by_argument(layers: list[Any], backend: Any) -> list[Any]:
    @torch.compile(backend=backend)
    def call(held: list[Any], x: Tensor) -> Tensor:
        y: Tensor = held[0](x)
        return y

    return [lambda x, layer=layer: call([layer], x) for layer in layers]


def by_graph_break(layers: list[Any], backend: Any) -> list[Any]:
    class Broken(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ReLU(), layer])

        def forward(self, x: Tensor) -> Tensor:
            torch._dynamo.graph_break()
            y: Tensor = self.layers[1](x)
            return y

    return [torch.compile(Broken(layer), backend=backend) for layer in layers]


WAYS = (by_method, by_function, by_closure, by_argument, by_graph_break)


class Graphs(Counted):
    """The backend, what its graphs hold after the passes, and the symbolic sizes among their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[list[str]] = []
        self.symbols: list[list[Any]] = []

    def __call__(self, gm: GraphModule, example_inputs: Sequence[object]) -> Callable[..., object]:
        copied = compat.copy_graph_module(gm)
        passes.rewrite(copied)
        values = [node.meta.get("example_value") for node in copied.graph.nodes]
        of_tensors = [size for value in values if isinstance(value, Tensor) for size in value.shape]
        self.symbols.append([size for size in of_tensors if compat.static_size(size) is None])
        self.operations.append([describe(n) for n in copied.graph.nodes if n.op.startswith("call_")])
        return super().__call__(gm, example_inputs)
