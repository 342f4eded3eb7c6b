"""What is timed: the MLPs of models that people know, for few tokens and many, at five sparsities and three blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

GpuOp = Literal["linear", "mlp", "gated_mlp"]


@dataclass(frozen=True)
class Shape:
    """An MLP. hidden, features: of its hidden layer, and of what goes in and comes out."""

    model: str
    hidden: int
    features: int
    op: GpuOp = "gated_mlp"


SHAPES = {
    shape.model: shape
    for shape in (
        Shape("llama-1b", 8192, 2048),
        Shape("llama-8b", 14336, 4096),
        Shape("llama-70b", 28672, 8192),
        Shape("llama-405b/8", 53248 // 8, 16384),  # one of eight shards
        Shape("gpt2-xl", 6400, 1600, "mlp"),
        Shape("vit-h", 5120, 1280, "mlp"),
    )
}
TOKENS = (1, 16, 128, 2048, 8192)
SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
BLOCKS = (32, 64, 128)
# Where time is short, what tells most comes first: these values, then those that leave one of them, and so on.
_FIRST = {"llama-8b", "llama-1b", 1, 16, 2048, 0.9, 0.95, 64, 128, "gated_mlp"}


@dataclass(frozen=True)
class Case:
    """One problem. op "linear" is the up projection of the model's MLP alone."""

    shape: Shape
    op: GpuOp
    tokens: int
    sparsity: float
    block: int
    dtype: str = "bf16"

    def __str__(self) -> str:
        """What reports call it."""
        what = f"{self.shape.model} {self.op}, {self.tokens} tokens"
        return f"{what}, {self.sparsity:.0%} sparse, block {self.block}, {self.dtype}"

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """`(N, K)` of each layer."""
        hidden, features = self.shape.hidden, self.shape.features
        up, down = (hidden, features), (features, hidden)
        return {"linear": (up,), "mlp": (up, down), "gated_mlp": (up, up, down)}[self.op]

    @property
    def outputs(self) -> int:
        """Features of the result."""
        return self.layers[-1][0]

    @property
    def num_weights(self) -> int:
        """Elements of all dense weights."""
        return sum(N * K for N, K in self.layers)

    @property
    def num_flops(self) -> float:
        """Operations on kept blocks."""
        return 2 * self.tokens * self.num_weights * (1 - self.sparsity)

    @property
    def num_activations(self) -> int:
        """Elements that go in and come out."""
        return self.tokens * (self.shape.features + self.outputs)


def cases(
    models: Iterable[str],
    tokens: Iterable[int],
    sparsities: Sequence[float],
    blocks: Sequence[int],
    dtype: str = "bf16",
) -> list[Case]:
    """All of them, those first that tell most."""
    found = [
        Case(SHAPES[model], op, count, sparsity, block, dtype)
        for model in models
        for op in _ops(SHAPES[model])
        for count in tokens
        for sparsity in sparsities
        for block in blocks
    ]
    return sorted(found, key=_importance, reverse=True)


def _ops(shape: Shape) -> Iterator[GpuOp]:
    yield shape.op
    yield "linear"


def _importance(case: Case) -> int:
    return len(_FIRST & {case.shape.model, case.tokens, case.sparsity, case.block, case.op})
