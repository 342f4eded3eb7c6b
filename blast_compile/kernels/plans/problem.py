"""What is tuned: a `Problem` is a kernel's spec and the sizes that it is run with, in buckets that share one plan."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from math import prod
from typing import Any

from blast_compile.base.errors import RecordError
from blast_compile.codegen.dtypes import item_bytes
from blast_compile.codegen.family import is_mlp
from blast_compile.codegen.spec import Dtype, Op, Spec
from blast_compile.codegen.spec_text import read_spec
from blast_compile.masks import layout
from blast_compile.masks.layout import Block

DENSITIES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Densities that stand for those nearest to them."""
MAX_SIZE = 2**40


@dataclass(frozen=True)
class Problem:
    """One op on layers of given sizes.

    shapes: `(N, K)` of each layer, in the order in which they run. tokens: rows of the activation. density: kept blocks
    over all blocks, of all layers together. threads: that may be used.
    """

    spec: Spec
    shapes: tuple[tuple[int, int], ...]
    tokens: int
    density: float
    threads: int

    @property
    def op(self) -> Op:
        """That of the spec."""
        return self.spec.op

    @property
    def dtype(self) -> Dtype:
        """Of activations."""
        return self.spec.dtype

    @property
    def block(self) -> Block:
        """`(bn, bk)` of the mask."""
        return self.spec.block

    @property
    def target(self) -> str:
        """`"cpu:avx512"` and the like."""
        return self.spec.target

    @property
    def x_bytes(self) -> int:
        """Bytes of one activation."""
        return item_bytes(self.spec.dtype)

    @property
    def weight_bytes(self) -> int:
        """Bytes of one weight."""
        return item_bytes(self.spec.weight_dtype)

    @property
    def num_blocks(self) -> tuple[int, ...]:
        """Kept blocks of each layer, as the density says."""
        return tuple(round(self.density * prod(layout.grid(shape, self.block))) for shape in self.shapes)

    @property
    def num_weights(self) -> int:
        """Elements of the dense weights."""
        return sum(N * K for N, K in self.shapes)

    @property
    def inputs(self) -> int:
        """Features of the activation."""
        return self.shapes[0][0] if self.op == "input_grad" else self.shapes[0][1]

    @property
    def outputs(self) -> int:
        """Features of the result."""
        return self.shapes[0][1] if self.op == "input_grad" else self.shapes[-1][0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of the result, behind those of the hidden layer if there is one, as the ops take them."""
        return (self.shapes[0][0], self.outputs)[-2 if is_mlp(self.op) else -1 :]

    @property
    def bucket(self) -> Problem:
        """The problem that stands for this one and those near it."""
        return replace(self, tokens=token_bucket(self.tokens), density=density_bucket(self.density))

    def at(self, tokens: int) -> Problem:
        """The same for another number of tokens."""
        return replace(self, tokens=tokens)

    def __str__(self) -> str:
        """A line for people."""
        sizes = ", ".join(f"{N}x{K}" for N, K in self.shapes)
        return (
            f"{self.op} {sizes} {self.dtype} {self.spec.layout} {self.block[0]}x{self.block[1]}, "
            f"{self.density:.0%} kept, {self.tokens} tokens, {self.threads} threads"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: object) -> Problem:
        """From what `to_json` gave; anything else is a `RecordError`."""
        try:
            return _problem(value)
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise RecordError(f"expected a problem, got {type(error).__name__}: {error}; tune it again") from error


def token_bucket(tokens: int) -> int:
    """The power of four at or above a number of tokens: 1, 4, 16, 64, 256, ..."""
    bucket = 1
    while bucket < tokens:
        bucket *= 4
    return bucket


@cache
def density_bucket(density: float) -> float:
    """The nearest of `DENSITIES`, by their ratio."""
    return min(DENSITIES, key=lambda known: max(known, density) / max(min(known, density), 1e-9))


def _problem(value: Any) -> Problem:
    shapes = tuple(_pair(shape, MAX_SIZE) for shape in value["shapes"])
    _one_of(bool(shapes), (True,))
    density = float(value["density"])
    _one_of(0.0 <= density <= 1.0, (True,))
    tokens, threads = _pair((value["tokens"], value["threads"]), MAX_SIZE)
    _one_of(len(value), (5,))
    return Problem(read_spec(value["spec"]), shapes, tokens, density, threads)


def _pair(value: Any, most: int) -> tuple[int, int]:
    first, second = value
    for number in (first, second):
        _one_of(type(number) is int and 0 < number <= most, (True,))
    return first, second


def _one_of(value: object, good: tuple[object, ...]) -> None:
    if value not in good:
        raise ValueError(f"{value!r} is not one of {good}")
