"""The ops as functions: the bodies behind `torch.ops.blast.*`, and what one asks of their plans.

Same names and arguments as in `reference.py`, then the `abi` and the probes that the ops carry, which change no
result. All raise as `plans.plan` does, `LayerError` on an unlike residual or a freed storage, `MaskError` where an
index is damaged, and `ScratchError` without memory. How they run is in `running.py`.

This is the hot path of every call, so arguments travel as they are; `launch.cpp` goes the same way in C++, on CPUs.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from torch import Tensor

from blast_compile.codegen.spec import Op
from blast_compile.kernels import cpu
from blast_compile.kernels.gpu import find as gpu_kernels
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.launcher import launcher
from blast_compile.kernels.plans import lookup
from blast_compile.ops import plan as plans
from blast_compile.ops.call import Call, read_call, tokens_of
from blast_compile.ops.products.cpu import block_norms, product, weight_grad

__all__ = [
    "OPS",
    "block_norms",
    "describe",
    "forget",
    "gated_linear",
    "gated_mlp",
    "input_grad",
    "linear",
    "mlp",
    "plan_numbers",
    "weight_grad",
]


def linear(
    x: Tensor, weight: Tensor, index: Tensor, bias: Tensor | None, residual: Tensor | None,
    out_features: int, block: Any, activation: Any, abi: int = 0, *_probes: Tensor | None,
) -> Tensor:  # fmt: skip
    """`activation(x @ (W * mask).T + bias) + residual`."""
    return product("linear", Call(x, ((weight, index, bias),), residual, (out_features,), block, activation, abi))


def gated_linear(
    x: Tensor, gate_weight: Tensor, gate_index: Tensor, gate_bias: Tensor | None,
    up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None,
    out_features: int, block: Any, activation: Any, abi: int = 0, *_probes: Tensor | None,
) -> Tensor:  # fmt: skip
    """`activation(gate(x)) * up(x)`."""
    layers = ((gate_weight, gate_index, gate_bias), (up_weight, up_index, up_bias))
    return product("gated_linear", Call(x, layers, None, (out_features,), block, activation, abi))


def mlp(
    x: Tensor, up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None,
    down_weight: Tensor, down_index: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    hidden_features: int, out_features: int, block: Any, activation: Any, abi: int = 0, *_probes: Tensor | None,
) -> Tensor:  # fmt: skip
    """`down(activation(up(x))) + residual`."""
    layers = ((up_weight, up_index, up_bias), (down_weight, down_index, down_bias))
    return product("mlp", Call(x, layers, residual, (hidden_features, out_features), block, activation, abi))


def gated_mlp(
    x: Tensor, gate_weight: Tensor, gate_index: Tensor, gate_bias: Tensor | None,
    up_weight: Tensor, up_index: Tensor, up_bias: Tensor | None,
    down_weight: Tensor, down_index: Tensor, down_bias: Tensor | None, residual: Tensor | None,
    hidden_features: int, out_features: int, block: Any, activation: Any, abi: int = 0, *_probes: Tensor | None,
) -> Tensor:  # fmt: skip
    """`down(activation(gate(x)) * up(x)) + residual`."""
    up, down = (up_weight, up_index, up_bias), (down_weight, down_index, down_bias)
    layers = ((gate_weight, gate_index, gate_bias), up, down)
    return product("gated_mlp", Call(x, layers, residual, (hidden_features, out_features), block, activation, abi))


def input_grad(grad: Tensor, weight: Tensor, index: Tensor, in_features: int, block: Any, abi: int = 0) -> Tensor:
    """`grad @ (W * mask)`, `[..., K]`."""
    return product("input_grad", Call(grad, ((weight, index, None),), None, (in_features,), block, abi=abi))


OPS: dict[Op, Callable[..., Tensor]] = {
    "linear": linear,
    "gated_linear": gated_linear,
    "mlp": mlp,
    "gated_mlp": gated_mlp,
    "input_grad": input_grad,
    "weight_grad": weight_grad,
}


def describe(op: Op, *arguments: Any) -> Kernel:
    """The kernel that serves a product on such arguments, as in `reference.py`; the tensors may be fake."""
    call = read_call(op, arguments)
    return plans.plan(op, call).at(tokens_of(call.x))


def plan_numbers(op: Op, *arguments: Any) -> list[int]:
    """A plan for `launch.cpp`, empty where the reference runs.

    Else a number of kernels; of each the most tokens that it serves, and its entry point; constants of the layers.
    """
    call = read_call(op, arguments[:-1])
    plan = plans.plan_of(op, call._replace(abi=arguments[-1]))
    served = [*plan.tuned, (lookup.MOST_TOKENS, plan.kernel)]
    if plan.kernel.address is None:
        return []
    numbers = ((most, kernel.address or 0) for most, kernel in served)
    return [len(served), *itertools.chain(*numbers), *itertools.chain(*plan.constants)]


def forget() -> None:
    """Drops plans and the kernels that this process has loaded, so that changed settings are read anew."""
    plans.forget()
    launcher.forget()
    cpu.forget()
    gpu_kernels.forget()
