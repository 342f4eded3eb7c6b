"""The products as data: which layers run in each, in which order, and what it is called with. Needs no torch.

A product is one stage or two: layers that read the same rows, with an activation behind the first stage. Whoever asks
what an op is made of asks this table; all that follows from a row is a property of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, NamedTuple

from blast_compile.codegen.spec import Activation, Epilogue, Op

if TYPE_CHECKING:
    from torch import Tensor

Kind = Literal["rows", "weight", "index", "bias", "residual", "size", "static", "probe"]


class Operands(NamedTuple):
    """What ops and kernels take of one layer, in this order. index: the mask of a dense weight, or of packed blocks."""

    weight: Tensor
    index: Tensor  # type: ignore[assignment]  # hides a method of tuples that nobody asks for
    bias: Tensor | None = None


class Argument(NamedTuple):
    """name, type: as in the schema. kind: what it means; rows and residual have a row a token."""

    name: str
    type: str
    kind: Kind


@dataclass(frozen=True)
class Stage:
    """Layers that read the same rows, by their roles, a gate first. features: the argument that sizes their result."""

    roles: tuple[str, ...]
    features: str = "out_features"

    @property
    def is_gated(self) -> bool:
        """Whether the activation of one layer multiplies the other."""
        return len(self.roles) == 2

    @property
    def op(self) -> Op:
        """The product that is this stage alone."""
        return "gated_linear" if self.is_gated else "linear"


@dataclass(frozen=True)
class Product:
    """A product, `rows @ W.T`, or with `is_transposed` an input gradient, `rows @ W`, which has nothing behind it."""

    name: Op
    stages: tuple[Stage, ...]
    takes_residual: bool = True
    is_transposed: bool = False

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Of all layers, in the order in which they run."""
        return tuple(role for stage in self.stages for role in stage.roles)

    @property
    def num_layers(self) -> int:
        """How many layers run."""
        return len(self.roles)

    @property
    def is_mlp(self) -> bool:
        """Whether a second stage reads what the first one gives."""
        return len(self.stages) == 2

    @property
    def is_gated(self) -> bool:
        """Whether its first stage has a gate."""
        return self.stages[0].is_gated

    @property
    def num_operands(self) -> int:
        """Of a layer; an input gradient reads no bias."""
        return len(Operands._fields) - self.is_transposed

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        """All arguments, as `torch.ops.blast` takes them."""
        rows = Argument("grad" if self.is_transposed else "x", "Tensor", "rows")
        operands = [
            Argument(argument_of(role, name), "Tensor?" if name in Operands._field_defaults else "Tensor", name)  # type: ignore[arg-type]
            for role in self.roles
            for name in Operands._fields[: self.num_operands]
        ]
        residual = [Argument("residual", "Tensor?", "residual")] * self.takes_residual
        sizes = [Argument(stage.features, "SymInt", "size") for stage in self.stages]
        activation = [] if self.is_transposed else [Argument("activation", "str", "static")]
        statics = [Argument("block", "int[2]", "static"), *activation, Argument("abi", "int", "static")]
        probes = [Argument(argument_of(role, "probe"), "Tensor?", "probe") for role in self.roles]
        return (rows, *operands, *residual, *sizes, *statics, *([] if self.is_transposed else probes))

    @cached_property
    def num_planned(self) -> int:
        """Arguments that a plan depends on: all but the probes."""
        return sum(argument.kind != "probe" for argument in self.arguments)

    @cached_property
    def _places(self) -> dict[Kind, int]:
        return {argument.kind: at for at, argument in reversed([*enumerate(self.arguments)])}

    def place_of(self, kind: Kind) -> int:
        """Where the first argument of a kind stands, or would stand behind the operands of the layers."""
        return self._places.get(kind, 1 + self.num_operands * self.num_layers)

    def schema(self, *, result: str = "Tensor", with_probes: bool = True) -> str:
        """The arguments and the result, as `torch.library` takes them, without the name."""
        taken = self.arguments if with_probes else self.arguments[: self.num_planned]
        texts = (f"{argument.type} {argument.name}" + "=None" * (argument.kind == "probe") for argument in taken)
        return f"({', '.join(texts)}) -> {result}"

    def shapes(self, num_inputs: int, sizes: Sequence[int]) -> tuple[tuple[int, int], ...]:
        """`(N, K)` of each layer, from the size of a row and the sizes of the results of the stages."""
        inputs = (num_inputs, *sizes)
        shapes = [(inputs[at + 1], inputs[at]) for at, stage in enumerate(self.stages) for _ in stage.roles]
        return tuple((K, N) if self.is_transposed else (N, K) for N, K in shapes)

    def epilogues(self, activation: Activation, biases: Sequence[bool], *, residual: bool) -> tuple[Epilogue, ...]:
        """Those of the stages, where some layers have a bias; none of an input gradient."""
        if self.is_transposed:
            return ()
        given, made = iter(biases), []
        for stage in self.stages:
            *gate_bias, bias = [next(given) for _ in stage.roles]
            is_first, is_last = stage is self.stages[0], stage is self.stages[-1]
            made.append(
                Epilogue(
                    activation if is_first else "identity",
                    bias=bias,
                    gate=stage.is_gated,
                    gate_bias=any(gate_bias),
                    residual=residual and is_last,
                )
            )
        return tuple(made)


def argument_of(role: str, what: str) -> str:
    """The name of an argument that belongs to one layer."""
    return f"{role}_{what}" if role else what


_HIDDEN = "hidden_features"
FORWARD: dict[Op, Product] = {
    product.name: product
    for product in (
        Product("linear", (Stage(("",)),)),
        Product("gated_linear", (Stage(("gate", "up")),), takes_residual=False),
        Product("mlp", (Stage(("up",), _HIDDEN), Stage(("down",)))),
        Product("gated_mlp", (Stage(("gate", "up"), _HIDDEN), Stage(("down",)))),
    )
}
"""What a graph is fused into."""
INPUT_GRAD = Product("input_grad", (Stage(("",), "in_features"),), takes_residual=False, is_transposed=True)
PRODUCTS: dict[Op, Product] = {**FORWARD, "input_grad": INPUT_GRAD}
"""All that is called with rows and layers; a weight gradient is not."""


def is_mlp(op: Op) -> bool:
    """Whether an op has two stages."""
    return op in FORWARD and FORWARD[op].is_mlp


def is_gated(op: Op) -> bool:
    """Whether an op has a gate."""
    return op in FORWARD and FORWARD[op].is_gated
