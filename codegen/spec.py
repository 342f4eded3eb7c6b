"""What decides a kernel's text: the `Spec`. Two layers with equal specs share one kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

Op = Literal["linear", "gated_linear", "mlp", "gated_mlp", "input_grad", "weight_grad"]
Activation = Literal["identity", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "relu_squared"]
Dtype = Literal["float32", "bfloat16", "float16"]
Layout = Literal["masked", "packed"]
Edge = Annotated[int, range(1, 257)]


@dataclass(frozen=True)
class Epilogue:
    """What happens to a product before it is stored.

    `activation(acc + bias) + residual`, or, beside a gate, `activation(gate + gate_bias) * (acc + bias) + residual`.
    """

    activation: Activation = "identity"
    bias: bool = False
    gate: bool = False
    gate_bias: bool = False
    residual: bool = False


@dataclass(frozen=True)
class Spec:
    """One kernel.

    dtype: of activations. weight_dtype: of weights and biases, that of the activations or float32. block: `(bn, bk)`.
    epilogues: one a product that the op computes, in order: one for linears, two (hidden, output) for MLPs, none for
    gradients.
    target: `"cpu:avx512_bf16"`, `"cpu:avx512"`, `"cpu:avx2"`, `"cpu:portable"`, `"cuda:sm_90"`, `"hip:gfx942"`, ...
    """

    op: Op
    dtype: Dtype
    weight_dtype: Dtype
    block: tuple[Edge, Edge]
    epilogues: tuple[Epilogue, ...]
    layout: Layout
    target: str

    @property
    def summary(self) -> str:
        """In a few words, the target left out."""
        first = self.epilogues[0] if self.epilogues else None
        flags = [name for name in ("bias", "residual") if any(getattr(each, name) for each in self.epilogues)]
        dtypes = dict.fromkeys((self.dtype, self.weight_dtype))
        activation = [first.activation] if first and first.activation != "identity" else []
        return " ".join([self.op, *activation, *flags, *dtypes, f"{self.block[0]}x{self.block[1]}", self.layout])
