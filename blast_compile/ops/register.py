"""The operators, `torch.ops.blast.*`: schemas, fake versions, autograd and autocast.

An op serves masked and packed layers alike: its `weight` is dense `[N, K]` and `index` a float32 mask `[R, C]`, or it
is values `[nnz, bk, bn]` with their int32 index (`layout.py`). `x` is `[..., K]`; a result is `[..., N]` in the dtype
of `x`.
Weights have the dtype of `x`, or float32 beside a 16-bit `x`.

Each op has two overloads. `default` carries the autograd formula of `gradients.py`; `nograd` carries none and
costs a few microseconds less a call, for graphs compiled without gradients. Beside them `launch.cpp` finds `_plain_*`,
the op in Python, and `_plan_*`, the plan of a call. Every schema has an `int abi`: fake and autograd formulas are
baked into torch's compile caches, so a change of formula must come with a new `ABI`.

Behind `abi` stands a probe for each layer, float32 `[R, C]`, that no result depends on. Its gradient is `block_norms`:
where the probe is not zero, the norms of the blocks of the dense weight gradient, dropped blocks too. The values are
read in the backward pass, so whoever wants the norms of one step only fills and clears a probe, and nothing recompiles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.library import Library

from blast_compile.base import compat
from blast_compile.base.errors import LayerError
from blast_compile.codegen.spec import Op
from blast_compile.ops import flops, transforms
from blast_compile.ops.products import gpu as gpu_launch
from blast_compile.ops.products import gpu_hidden_grads, gradients, hidden_grads, launch, layer_gradients

ABI = layer_gradients.ABI

_LINEAR = "Tensor x, Tensor weight, Tensor index, Tensor? bias, Tensor? residual"
_UP = "Tensor up_weight, Tensor up_index, Tensor? up_bias"
_PAIR = f"Tensor gate_weight, Tensor gate_index, Tensor? gate_bias, {_UP}"
_DOWN = "Tensor down_weight, Tensor down_index, Tensor? down_bias, Tensor? residual"
_TAIL = "SymInt out_features, int[2] block, str activation, int abi"
_ARGUMENTS: dict[Op, str] = {
    "linear": f"{_LINEAR}, {_TAIL}",
    "gated_linear": f"Tensor x, {_PAIR}, {_TAIL}",
    "mlp": f"Tensor x, {_UP}, {_DOWN}, SymInt hidden_features, {_TAIL}",
    "gated_mlp": f"Tensor x, {_PAIR}, {_DOWN}, SymInt hidden_features, {_TAIL}",
    "input_grad": "Tensor grad, Tensor weight, Tensor index, SymInt in_features, int[2] block, int abi",
    "weight_grad": "Tensor grad, Tensor x, Tensor weight, Tensor index, int[2] block, int abi",
}
_HIDDEN_GRADS = {
    "hidden_grad": ("Tensor z", "Tensor"),
    "gated_hidden_grad": ("Tensor gate, Tensor up", "(Tensor, Tensor)"),
}
_PROBES: dict[Op, tuple[str, ...]] = {
    "linear": ("probe",),
    "gated_linear": ("gate_probe", "up_probe"),
    "mlp": ("up_probe", "down_probe"),
    "gated_mlp": ("gate_probe", "up_probe", "down_probe"),
}
_BLOCK_NORMS = "(Tensor grad, Tensor x, Tensor probe, int[2] block, int abi) -> Tensor"
_lib = Library("blast", "DEF")  # type: ignore[no-untyped-call]


def _fake(name: Op) -> Callable[..., Tensor]:
    """The shape of a result: the op on tensors without values. Raises `LayerError` where only some are on meta."""
    last_size = _ARGUMENTS[name].count(",", 0, _ARGUMENTS[name].rfind("_features")) - 1  # of the arguments behind x

    def call(x: Tensor, *args: Any) -> Tensor:
        devices = {str(arg.device) for arg in (x, *args) if isinstance(arg, Tensor)}
        if len(devices) > 1 and "meta" in devices:  # torch calls this for them all, and values would be made up
            raise LayerError(f"expected tensors of {name} on one device, got {', '.join(sorted(devices))}; move them")
        if name == "weight_grad":
            return torch.empty_like(args[1])
        return x.new_empty((*x.shape[:-1], args[last_size]))

    return call


def _autocast(op: OpOverload, device: str) -> Callable[..., Tensor]:
    """Casts `x` alone: casting a dense float32 weight at every call costs more than its sparse product."""

    def call(x: Tensor, *args: Any) -> Tensor:
        with compat.without_autocast(device):
            is_cast = x.is_floating_point() and x.dtype != torch.float64  # as torch's own linear does
            y: Tensor = op(x.to(torch.get_autocast_dtype(device)) if is_cast else x, *args)
        return y

    return call


def _define(name: str, schema: str, implementation: Callable[..., Any], *, has_gradient: bool = False) -> None:
    _lib.define(name + schema, tags=(torch.Tag.needs_exact_strides,))  # type: ignore[no-untyped-call]
    _lib.impl(name, implementation, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    if not has_gradient:
        _lib.impl(name, torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]


def schema_of(name: Op) -> str:
    """The arguments and the result of an op, as `torch.library` takes them, without its name."""
    probes = (f"Tensor? {probe}=None" for probe in _PROBES.get(name, ()))
    return f"({', '.join((_ARGUMENTS[name], *probes))}) -> Tensor"


def _register(name: Op, arguments: str) -> None:
    schema = schema_of(name)
    if name != "weight_grad":
        _define(f"_plain_{name}", schema, launch.OPS[name])
        _define(f"_plan_{name}", f"({arguments}) -> int[]", partial(launch.plan_numbers, name))
    for overload in ("default", "nograd"):
        full_name = name if overload == "default" else f"{name}.{overload}"
        _define(full_name, schema, launch.OPS[name], has_gradient=overload == "default")
        _lib.impl(full_name, gpu_launch.OPS[name], "CUDA")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"blast::{full_name}", _fake(name), lib=_lib)
        op = getattr(getattr(torch.ops.blast, name), overload)
        torch.library.register_vmap(f"blast::{full_name}", transforms.batched(op), lib=_lib)
        if name not in ("input_grad", "weight_grad"):
            for device in ("cpu", "cuda"):
                _lib.impl(full_name, _autocast(op, device), f"Autocast{device.upper()}")  # type: ignore[no-untyped-call]
    kernel = transforms.differentiable(getattr(torch.ops.blast, name).default, gradients.FORMULAS[name])
    _lib.impl(name, kernel, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]


def _register_block_norms() -> None:
    """It has no gradient: the norms are numbers to look at."""
    _define("block_norms", _BLOCK_NORMS, launch.block_norms)
    _lib.impl("block_norms", gpu_launch.block_norms, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake("blast::block_norms", lambda _grad, _x, probe, *_: torch.empty_like(probe), lib=_lib)
    torch.library.register_vmap("blast::block_norms", transforms.batched(torch.ops.blast.block_norms.default), lib=_lib)


def _register_hidden_grad(name: str, hidden: str, results: str) -> None:
    """Without a gradient: where it may be asked for, `gradients.py` takes the product and the activation one by one."""
    sizes = "SymInt hidden_features, int[2] block, str activation, int abi"
    _define(
        name, f"(Tensor grad, Tensor weight, Tensor index, {hidden}, {sizes}) -> {results}", getattr(hidden_grads, name)
    )
    _lib.impl(name, getattr(gpu_hidden_grads, name), "CUDA")  # type: ignore[no-untyped-call]

    def fake(*args: Any) -> Any:
        like = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in args[3:-4]]
        return like[0] if len(like) == 1 else tuple(like)

    torch.library.register_fake(f"blast::{name}", fake, lib=_lib)
    op = getattr(torch.ops.blast, name).default
    torch.library.register_vmap(f"blast::{name}", transforms.batched(op), lib=_lib)


for _name, _arguments in _ARGUMENTS.items():
    _register(_name, _arguments)
_register_block_norms()
for _hidden_grad, (_hidden, _results) in _HIDDEN_GRADS.items():
    _register_hidden_grad(_hidden_grad, _hidden, _results)
flops.register()
