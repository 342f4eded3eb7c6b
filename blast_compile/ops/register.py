"""The operators, `torch.ops.blast.*`: schemas, fake versions, autograd and autocast.

An op serves masked and packed layers alike: its `weight` is dense `[N, K]` and `index` a float32 mask `[R, C]`, or it
is values `[nnz, bk, bn]` with their int32 index (`layout.py`). `x` is `[..., K]`; a result is `[..., N]` in the dtype
of `x`.
Weights have the dtype of `x`, or float32 beside a 16-bit `x`.

Each product has two overloads. `default` carries the autograd formula of `gradients.py`; `nograd` carries none and
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
from blast_compile.codegen.family import PRODUCTS, Product
from blast_compile.ops import flops, planning, transforms
from blast_compile.ops.attention import op as attention
from blast_compile.ops.definition import OpDef
from blast_compile.ops.products import cpu, gpu, gpu_gradients, gradients, layer_gradients

ABI = layer_gradients.ABI


def of_product(product: Product) -> OpDef:
    """A forward product or an input gradient, from its row of the table."""
    last_size = product.place_of("size") + len(product.stages) - 2  # of the arguments behind x

    def fake(x: Tensor, *args: Any) -> Tensor:
        _check_devices(product.name, (x, *args))
        return x.new_empty((*x.shape[:-1], args[last_size]))

    return OpDef(
        product.name,
        product.schema(),
        cpu.OPS[product.name],
        gpu.OPS[product.name],
        fake,
        gradients.OF_INPUT_GRAD if product.is_transposed else gradients.formula_of(product),
        frozenset(argument.name for argument in product.arguments if argument.kind in ("rows", "residual")),
        has_plans=True,
        num_cast=int(not product.is_transposed),
    )


def _of_hidden_grad(name: str, hidden: str, results: str) -> OpDef:
    """Without a gradient: where it may be asked for, `gradients.py` takes the product and the activation one by one."""
    bodies = cpu.hidden_grads, gpu_gradients.hidden_grads
    of_cpu, of_gpu = bodies if results != "Tensor" else map(_only_result, bodies)
    sizes = "SymInt hidden_features, int[2] block, str activation, int abi"

    def fake(*args: Any) -> Any:
        like = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in args[3:-4]]
        return like[0] if len(like) == 1 else tuple(like)

    schema = f"(Tensor grad, Tensor weight, Tensor index, {hidden}, {sizes}) -> {results}"
    rows = frozenset({"grad", "z", "gate", "up"})
    return OpDef(name, schema, of_cpu, of_gpu, fake, rows=rows)


def _only_result(body: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
    return lambda *args: body(*args)[0]


def _fake_weight_grad(*args: Any) -> Tensor:
    _check_devices("weight_grad", args)
    return torch.empty_like(args[2])


OPS = (
    *map(of_product, PRODUCTS.values()),
    OpDef(
        "weight_grad",
        "(Tensor grad, Tensor x, Tensor weight, Tensor index, int[2] block, int abi) -> Tensor",
        cpu.weight_grad,
        gpu_gradients.weight_grad,
        _fake_weight_grad,
        gradients.OF_WEIGHT_GRAD,
    ),
    OpDef(
        "block_norms",  # numbers to look at: without a gradient
        "(Tensor grad, Tensor x, Tensor probe, int[2] block, int abi) -> Tensor",
        cpu.block_norms,
        gpu_gradients.block_norms,
        lambda _grad, _x, probe, *_: torch.empty_like(probe),
    ),
    _of_hidden_grad("hidden_grad", "Tensor z", "Tensor"),
    _of_hidden_grad("gated_hidden_grad", "Tensor gate, Tensor up", "(Tensor, Tensor)"),
    *attention.OPS,
)
_library = Library("blast", "DEF")  # type: ignore[no-untyped-call]


def _check_devices(name: str, args: tuple[Any, ...]) -> None:
    """Raises `LayerError` where only some tensors are on meta: torch asks for a fake of them all, made-up values."""
    devices = {str(arg.device) for arg in args if isinstance(arg, Tensor)}
    if len(devices) > 1 and "meta" in devices:
        raise LayerError(f"expected tensors of {name} on one device, got {', '.join(sorted(devices))}; move them")


def _autocast(op: OpOverload, device: str, num_cast: int) -> Callable[..., Any]:
    """Casts the first tensors: casting a dense float32 weight at every call costs more than its sparse product."""

    def call(*args: Any) -> Any:
        with compat.without_autocast(device):
            return op(*(_cast(arg, device) for arg in args[:num_cast]), *args[num_cast:])

    return call


def _cast(x: Tensor, device: str) -> Tensor:
    """As torch's own linear does."""
    is_cast = x.is_floating_point() and x.dtype != torch.float64
    return x.to(torch.get_autocast_dtype(device)) if is_cast else x


def _define(name: str, schema: str, implementation: Callable[..., Any], *, has_gradient: bool = False) -> None:
    _library.define(name + schema, tags=(torch.Tag.needs_exact_strides,))  # type: ignore[no-untyped-call]
    _library.impl(name, implementation, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    if not has_gradient:
        _library.impl(name, torch.library.fallthrough_kernel, "Autograd")  # type: ignore[no-untyped-call]


def _register(op: OpDef) -> None:
    """Defines an op in all its overloads, on every device and for all of torch's transforms."""
    if op.has_plans:
        without_probes = PRODUCTS[op.name].schema(result="int[]", with_probes=False)  # type: ignore[index]
        _define(f"_plain_{op.name}", op.schema, op.cpu)
        _define(f"_plan_{op.name}", without_probes, partial(planning.plan_numbers, op.name))  # type: ignore[arg-type]
    for overload in ("default", "nograd") if op.formula else ("default",):
        _register_overload(op, overload)
    if op.formula:
        kernel = transforms.differentiable(getattr(torch.ops.blast, op.name).default, op.formula)
        _library.impl(op.name, kernel, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]


def _register_overload(op: OpDef, overload: str) -> None:
    name = op.name if overload == "default" else f"{op.name}.{overload}"
    _define(name, op.schema, op.cpu, has_gradient=op.formula is not None and overload == "default")
    _library.impl(name, op.gpu, "CUDA")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"blast::{name}", op.fake, lib=_library)
    packet = getattr(getattr(torch.ops.blast, op.name), overload)
    torch.library.register_vmap(f"blast::{name}", transforms.batched(packet, op.rows), lib=_library)
    for device in ("cpu", "cuda") if op.num_cast else ():
        _library.impl(name, _autocast(packet, device, op.num_cast), f"Autocast{device.upper()}")  # type: ignore[no-untyped-call]


for _op in OPS:
    _register(_op)
flops.register()
