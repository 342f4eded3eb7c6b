"""Builds calls of the operators for tests, with the truth beside them.

The truth is dense: weights in float64, zero outside kept blocks, products by `F.linear`. It shares no code with the
layouts, the reference or the kernels. What an op must not read is poisoned: dropped blocks of a masked weight are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.codegen.spec import Activation
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.ops import register

OpName = Literal["linear", "gated_linear", "mlp", "gated_mlp"]
Form = Literal["masked", "transposed", "packed"]
OPS: tuple[OpName, ...] = ("linear", "gated_linear", "mlp", "gated_mlp")
FORMS: tuple[Form, ...] = ("masked", "transposed", "packed")
ACTIVATIONS: tuple[Activation, ...] = ("identity", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "relu_squared")
KERNEL_BLOCKS: tuple[Block, ...] = ((32, 32), (16, 16), (8, 8), (64, 32), (13, 17), (128, 64), (256, 256))
SMALL_BLOCKS: tuple[Block, ...] = ((4, 4), (1, 1))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Case:
    """What decides which kernel serves a call. `weight_dtype` None means that of `dtype`."""

    op: OpName = "linear"
    dtype: torch.dtype = torch.float32
    block: Block = (32, 32)
    form: Form = "masked"
    activation: Activation = "identity"
    bias: bool = True
    residual: bool = False
    weight_dtype: torch.dtype | None = None

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        parts = [self.op, dtype, f"{self.block[0]}x{self.block[1]}", self.form, self.activation]
        parts += [name for name in ("bias", "residual") if getattr(self, name)]
        return "-".join(parts + ["fp32_weight"] * (self.weight_dtype is not None))

    @property
    def num_layers(self) -> int:
        return {"linear": 1, "gated_linear": 2, "mlp": 2, "gated_mlp": 3}[self.op]


# One kernel a form and dtype, for the tests that sweep something else.
SOME = [
    Case("linear", torch.float32, form="masked", activation="gelu", residual=True),
    Case("linear", torch.bfloat16, form="packed", activation="identity"),
    Case("mlp", torch.float32, form="transposed", activation="gelu_tanh", residual=True),
    Case("gated_mlp", torch.bfloat16, form="packed", activation="silu", bias=False),
    Case("gated_mlp", torch.float32, form="packed", activation="silu", bias=False),
    Case("gated_linear", torch.bfloat16, form="masked", activation="silu"),
]


@dataclass
class Layer:
    """One sparse linear: operands of an op and, beside them, the truth `clean` `[N, K]` in float64."""

    operand: Tensor
    index: Tensor
    bias: Tensor | None
    clean: Tensor
    kept: Tensor

    def dense(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.clean.to(x.dtype), bias)


@dataclass
class Call:
    """A call of an op: `args` is what it takes; `dense` is what it should give."""

    case: Case
    x: Tensor
    layers: list[Layer]
    residual: Tensor | None

    @property
    def args(self) -> list[object]:
        tensors: list[object] = [self.x]
        for layer in self.layers:
            tensors += [layer.operand, layer.index, layer.bias]
        if self.case.op != "gated_linear":
            tensors.append(self.residual)
        sizes = [self.layers[-1].clean.shape[0]]
        if self.case.op in ("mlp", "gated_mlp"):
            sizes.insert(0, self.layers[0].clean.shape[0])
        return [*tensors, *sizes, list(self.case.block), self.case.activation, register.ABI]

    def run(self, overload: str = "default") -> Tensor:
        return cast(Tensor, getattr(getattr(torch.ops.blast, self.case.op), overload)(*self.args))

    def dense(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """The op computed by dense torch in `dtype`; float64 is the truth."""
        return dense_forward(self.case, self.x.to(dtype), self.layers, self.residual)


def dense_forward(case: Case, x: Tensor, layers: Sequence[Layer], residual: Tensor | None) -> Tensor:
    """The definition of each op, in the dtype of `x`."""
    first = layers[0].dense(x)
    y = _activate(first, case.activation)
    if case.op in ("gated_linear", "gated_mlp"):
        y = y * layers[1].dense(x)
    if case.op in ("mlp", "gated_mlp"):
        y = layers[-1].dense(y)
    return y if residual is None else y + residual.to(y.dtype)


def _activate(z: Tensor, activation: Activation) -> Tensor:
    if activation == "gelu_tanh":
        return F.gelu(z, approximate="tanh")
    if activation == "quick_gelu":
        return z * torch.sigmoid(1.702 * z)
    if activation == "relu_squared":
        return F.relu(z) ** 2
    return z if activation == "identity" else cast(Tensor, getattr(F, activation)(z))


def make_layer(case: Case, shape: tuple[int, int], kept: Tensor, generator: torch.Generator) -> Layer:
    """A layer of weight `shape` `(N, K)` keeping `kept` `[R, C]`, its operand in the form that the case asks for."""
    (N, K), (bn, bk), dtype = shape, case.block, case.weight_dtype or case.dtype
    is_kept = torch.kron(kept, torch.ones(bn, bk, dtype=torch.bool))[:N, :K]
    weight = (torch.randn(N, K, generator=generator, dtype=torch.float64) / max(K, 1) ** 0.5).to(dtype)
    clean = torch.where(is_kept, weight.double(), 0.0)
    poisoned = torch.where(is_kept, weight, float("nan"))
    bias = torch.randn(N, generator=generator, dtype=torch.float64).to(dtype) if case.bias else None
    if case.form == "packed":
        return Layer(layout.pack(poisoned, kept, case.block), layout.packed_index(kept), bias, clean, kept)
    operand = poisoned.t().contiguous().t() if case.form == "transposed" else poisoned
    return Layer(operand, layout.mask_values(kept), bias, clean, kept)


def random_kept(blocks: tuple[int, int], density: float, generator: torch.Generator) -> Tensor:
    """A random mask; from three block rows on, one is empty and one full, as learned masks have them."""
    R, C = blocks
    kept = torch.rand(R, C, generator=generator) < density
    if R >= 3 and 0.0 < density < 1.0:
        kept[1], kept[2] = False, True
    return kept


def make_call(
    case: Case,
    leading: tuple[int, ...] = (7,),
    sizes: tuple[int, int, int] | None = None,
    *,
    density: float = 0.4,
    seed: int = 0,
) -> Call:
    """A call with `x` of shape `[*leading, K]`; `sizes` is `(K, hidden, N)`, by default ragged, some blocks large."""
    generator = torch.Generator().manual_seed(seed)
    K, hidden, N = sizes or default_sizes(case.block)
    layers = []
    for number in range(case.num_layers):
        is_down = case.op in ("mlp", "gated_mlp") and number == case.num_layers - 1
        has_hidden_out = case.op in ("mlp", "gated_mlp") and not is_down
        shape = (hidden if has_hidden_out else N, hidden if is_down else K)
        kept = random_kept(layout.grid(shape, case.block), density, generator)
        layers.append(make_layer(case, shape, kept, generator))
    x = torch.randn(*leading, K, generator=generator, dtype=torch.float64).to(case.dtype)
    has_residual = case.residual and case.op != "gated_linear"
    residual = (
        torch.randn(*leading, N, generator=generator, dtype=torch.float64).to(case.dtype) if has_residual else None
    )
    return Call(case, x, layers, residual)


def default_sizes(block: Block) -> tuple[int, int, int]:
    """Ragged `(K, hidden, N)`: neither a multiple of the block nor of a vector."""
    bn, bk = block
    if max(block) > 128:
        return bk + 37, bn + 21, bn + 45
    return 4 * bk + bk // 2 + 1, 5 * max(block) + max(block) // 3 + 1, 3 * bn + bn // 2 + 3


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Largest absolute error over the largest absolute value of the truth; infinite where something is not a number."""
    if actual.numel() == 0:
        return 0.0
    error = (actual.double() - expected.double()).abs().max().item()
    scale = expected.double().abs().max().item()
    if math.isnan(error):
        return float("inf")
    return error / scale if scale else (0.0 if error == 0.0 else float("inf"))


def mean_error(actual: Tensor, expected: Tensor) -> float:
    """Root of the mean square error over that of the mean square truth; 0 where both are nothing but zeros."""
    error, scale = float((actual.double() - expected.double()).norm()), float(expected.double().norm())
    if scale:
        return error / scale
    return math.inf if error else 0.0


def check(actual: Tensor, call: Call) -> None:
    """Asserts shape, dtype and accuracy of a result against the truth of its call."""
    expected = call.dense()
    assert actual.shape == expected.shape
    assert actual.dtype == call.case.dtype
    assert actual.is_contiguous()
    check_accuracy(actual, expected, lambda: call.dense(call.case.dtype))


def check_accuracy(actual: Tensor, expected: Tensor, dense: object) -> None:
    """float64 below 1e-12, float32 below 1e-5; 16 bits against the error of the same dense op in 16 bits.

    The mean square error may be 1.5 times that of dense there, and the worst element, a matter of luck in small
    results, 3 times as far off. Half a last place in the mean, and a whole one at worst, are always allowed.
    """
    error = relative_error(actual, expected)
    if actual.dtype.itemsize > 2:
        limit = 1e-12 if actual.dtype == torch.float64 else 1e-5
    else:
        assert callable(dense)
        rounded, place = dense(), torch.finfo(actual.dtype).eps
        mean, mean_limit = mean_error(actual, expected), max(1.5 * mean_error(rounded, expected), place / 2)
        assert mean <= mean_limit, f"mean relative error {mean:.3g} above {mean_limit:.3g}"
        limit = max(3 * relative_error(rounded, expected), place)
    assert error <= limit, f"relative error {error:.3g} above {limit:.3g}"
