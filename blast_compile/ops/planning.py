"""From a call to its plan: the kernel that serves it, or the reason why the reference does.

A plan depends on dtypes, shapes, strides, block and activation, never on values, so it is remembered.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from blast_compile.base import compat, processor
from blast_compile.codegen.spec import Epilogue, Op, Spec
from blast_compile.kernels import cpu
from blast_compile.kernels.gpu import find as gpu_kernels
from blast_compile.kernels.gpu.device import target_of
from blast_compile.kernels.kernel import Kernel
from blast_compile.kernels.launcher import launcher
from blast_compile.kernels.plans import lookup
from blast_compile.kernels.plans.pinned import PinnedConfig, config_of
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.ops import checks
from blast_compile.ops.call import Call, Layer, layer_of_weight_grad, layers_of, read_call, tokens_of
from blast_compile.ops.spec import epilogues_of, make_spec


@dataclass(frozen=True)
class Plan:
    """The kernel of a call and, for each layer: row stride, column stride, outputs, contractions, number of blocks.

    tuned: kernels for fewer tokens than `kernel` serves, each behind the most tokens that it serves, ascending.
    """

    kernel: Kernel
    constants: tuple[tuple[int, ...], ...] = ()
    tuned: tuple[tuple[int, Kernel], ...] = ()

    def at(self, tokens: int) -> Kernel:
        """The kernel for so many tokens."""
        for most, kernel in self.tuned:
            if tokens <= most:
                return kernel
        return self.kernel

    @property
    def run(self) -> Callable[[int], int] | None:
        """The kernel's entry point, or None where the reference runs."""
        return self.kernel.run


MOST_PLANS = 4096  # more kinds of calls than a model has, in a few MB
_plans: dict[tuple[Any, ...], Plan] = {}
_older: dict[tuple[Any, ...], Plan] = {}


def plan_of(op: Op, call: Call) -> Plan:
    """The plan of a product, made once for calls that differ in values and number of tokens alone; raises as `plan`."""
    x, layers, residual, sizes, block, activation, abi = call
    forms = [_form(*layer) for layer in layers]
    key = (op, x.dtype, x.device, x.shape[-1], residual is None, sizes, *block, activation, abi, *forms)
    return _plans.get(key) or _remembered(key, plan, op, call)


def weight_grad_plan_of(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Block, abi: int) -> Plan:
    """The plan of a weight gradient, remembered as `plan_of` remembers; raises as `plan_weight_grad` does."""
    checks.check_gradient(grad, x)
    of_grad = (grad.dtype, grad.device, grad.shape[-1])
    key = ("weight_grad", of_grad, x.dtype, x.device, x.shape[-1], *block, abi, _form(weight, index, None))
    return _plans.get(key) or _remembered(key, plan_weight_grad, grad, x, weight, index, block, abi)


def num_remembered() -> int:
    """How many plans are remembered, at most twice `MOST_PLANS`."""
    return len(_plans) + len(_older)


def forget() -> None:
    """Drops plans and the kernels that this process has loaded, so that changed settings are read anew."""
    _plans.clear()
    _older.clear()
    launcher.forget()
    cpu.forget()
    gpu_kernels.forget()


def _remembered(key: tuple[Any, ...], make: Callable[..., Plan], *arguments: Any) -> Plan:
    """A plan of long ago, or a new one. Where there are too many, those not asked for since the last time go.

    Packed weights differ in their number of blocks, so a process that loads one model after another meets new kinds of
    calls for ever.
    """
    global _plans, _older
    found = _older.pop(key, None) or compat.outside_dynamo(make)(*arguments)
    if len(_plans) >= MOST_PLANS:
        _older, _plans = _plans, {}
    _plans[key] = found
    return found


def plan(op: Op, call: Call) -> Plan:
    """The plan of a forward product or an input gradient, made anew.

    Raises `OptionsError` on an unknown activation, and as `checks.check_layer` where tensors do not fit.
    """
    checks.check_activation(call.activation)
    layers = _checked(op, call)
    epilogues, pinned = epilogues_of(op, call), config_of(call.abi)
    return _planned(op, call.x, layers, call.block, epilogues, pinned, partial(density_of, op, call))


def plan_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Block, abi: int = 0) -> Plan:
    """The plan of a weight gradient, made anew; raises as `plan` does."""
    layer = layer_of_weight_grad(grad, x, weight, index)
    checks.check_layer(grad, layer, block)
    checks.check_gradient(grad, x)
    if grad.dtype != x.dtype:
        return Plan(Kernel("reference", reason="gradient and input differ in dtype"))
    density = partial(lookup.density, [(weight, index)], [layout.grid((layer.N, layer.K), block)])
    return _planned("weight_grad", x, [layer], block, (), config_of(abi), density)


def describe(op: Op, *arguments: Any) -> Kernel:
    """The kernel that serves a product on such arguments, as in `reference.py`; the tensors may be fake."""
    call = read_call(op, arguments)
    return plan(op, call).at(tokens_of(call.x))


def plan_numbers(op: Op, *arguments: Any) -> list[int]:
    """A plan for `launch.cpp`, empty where the reference runs.

    Else a number of kernels; of each the most tokens that it serves, and its entry point; constants of the layers.
    """
    found = plan_of(op, read_call(op, arguments))
    if found.kernel.address is None:
        return []
    served = [*found.tuned, (lookup.MOST_TOKENS, found.kernel)]
    numbers = ((most, kernel.address or 0) for most, kernel in served)
    return [len(served), *itertools.chain(*numbers), *itertools.chain(*found.constants)]


def spec_of(op: Op, call: Call, target: str) -> Spec | str:
    """The spec of a forward product or an input gradient on `target`, or why no kernel serves it; raises as `plan`."""
    layers = _checked(op, call)
    return make_spec(op, call.x, layers, call.block, epilogues_of(op, call), target)


def density_of(op: Op, call: Call) -> float | None:
    """Kept blocks of a call's layers over all of them, None where a masked layer has no values to read."""
    layers = layers_of(op, call)
    grids = [layout.grid((layer.N, layer.K), call.block) for layer in layers]
    return lookup.density([(layer.weight, layer.index) for layer in layers], grids)


def _checked(op: Op, call: Call) -> list[Layer]:
    layers = layers_of(op, call)
    for layer in layers:
        checks.check_layer(call.x, layer, call.block)
    return layers


def _planned(
    op: Op,
    x: Tensor,
    layers: Sequence[Layer],
    block: Block,
    epilogues: tuple[Epilogue, ...],
    pinned: PinnedConfig | None,
    density: Callable[[], float | None],
) -> Plan:
    """The kernel that serves layers, and on a CPU those that were tuned for fewer tokens, unless a config is pinned."""
    kernel, constants = _choose(op, x, layers, block, epilogues, pinned), constants_of(op, layers)
    if kernel.run is None or pinned is not None or x.device.type != "cpu":
        return Plan(kernel, constants)
    spec = make_spec(op, x, layers, block, epilogues, processor.cpu_target())
    assert isinstance(spec, Spec)
    shapes = tuple((layer.N, layer.K) for layer in layers)
    return Plan(kernel, constants, lookup.tuned_kernels(spec, shapes, tokens_of(x), density))


def _choose(
    op: Op,
    x: Tensor,
    layers: Sequence[Layer],
    block: Block,
    epilogues: tuple[Epilogue, ...],
    pinned: PinnedConfig | None = None,
) -> Kernel:
    gpu = target_of(x.device)
    if gpu is None and x.device.type != "cpu":
        return Kernel("reference", reason=f"no kernels for {x.device.type} yet")
    spec = make_spec(op, x, layers, block, epilogues, gpu or processor.cpu_target())
    if isinstance(spec, str):
        return Kernel("reference", reason=spec)
    if gpu:
        return gpu_kernels.find(spec)
    return cpu.kernel_for(spec, None if pinned is None else pinned.at(spec))


def constants_of(op: Op, layers: Sequence[Layer]) -> tuple[tuple[int, ...], ...]:
    """What a kernel is told of each layer beside addresses, as `Plan.constants`."""
    return tuple(_constants(layer, op == "input_grad") for layer in layers)


def _constants(layer: Layer, transposed: bool) -> tuple[int, ...]:
    weight, index = layer.weight, layer.index
    num_blocks = weight.shape[0] if weight.dim() == 3 else index.numel()
    outputs, contractions = (layer.K, layer.N) if transposed else (layer.N, layer.K)
    return (*weight.stride()[:2], outputs, contractions, num_blocks)


def _form(weight: Tensor, index: Tensor, bias: Tensor | None) -> tuple[Any, ...]:
    """All that a plan depends on of a layer."""
    of_index = (index.dtype, index.device, index.shape, index.is_contiguous())
    of_bias = None if bias is None else (bias.dtype, bias.device, bias.shape, bias.is_contiguous())
    return (weight.dtype, weight.device, weight.shape, weight.stride(), of_index, of_bias)
