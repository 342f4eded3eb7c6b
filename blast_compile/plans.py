"""From the arguments of an op to its plan: the kernel that serves them, or the reason why the reference does.

A plan depends on dtypes, shapes, strides, block and activation, never on values, so it may be remembered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from blast_compile import compat, kernels, layout
from blast_compile.codegen.cpp import CpuConfig
from blast_compile.codegen.spec import Activation, Dtype, Epilogue, Op, Spec
from blast_compile.errors import DtypeError, LayerError, MaskError, OptionsError
from blast_compile.gpu import kernels as gpu_kernels
from blast_compile.gpu.device import target_of
from blast_compile.kernels import Kernel
from blast_compile.layout import Block
from blast_compile.tuning import serving
from blast_compile.tuning.pinned import config_of

DTYPES: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_ACTIVATIONS = get_args(Activation)

Tensors = tuple[Tensor, Tensor, Tensor | None]
"""Weight, index and bias of a layer."""


class Call(NamedTuple):
    """The arguments of a forward product or an input gradient, by what they mean.

    layers: in the order in which they run. sizes: features of the result, behind those of the hidden layer if any. abi:
    may ask for a config, see `tuning/pinned.py`.
    """

    x: Tensor
    layers: tuple[Tensors, ...]
    residual: Tensor | None
    sizes: tuple[int, ...]
    block: Block
    activation: Activation = "identity"
    abi: int = 0


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


@dataclass(frozen=True)
class _Layer:
    weight: Tensor
    index: Tensor
    bias: Tensor | None
    N: int
    K: int


def read_call(op: Op, arguments: Sequence[Any]) -> Call:
    """The arguments of a product, as in `reference.py`, by what they mean."""
    x, *rest = arguments
    if op == "input_grad":
        weight, index, K, block = rest
        return Call(x, ((weight, index, None),), None, (K,), block)
    *rest, block, activation = rest
    num_sizes = 2 if op in ("mlp", "gated_mlp") else 1
    tensors, sizes = rest[:-num_sizes], tuple(rest[-num_sizes:])
    residual = None if op == "gated_linear" else tensors.pop()
    layers = tuple(zip(tensors[0::3], tensors[1::3], tensors[2::3], strict=True))
    return Call(x, layers, residual, sizes, block, activation)


def write_call(op: Op, call: Call) -> list[Any]:
    """What `read_call` reads: the arguments of a product, as in `reference.py`."""
    if op == "input_grad":
        return [call.x, *call.layers[0][:2], *call.sizes, call.block]
    tensors = [tensor for layer in call.layers for tensor in layer]
    added = [] if op == "gated_linear" else [call.residual]
    return [call.x, *tensors, *added, *call.sizes, call.block, call.activation]


def plan(op: Op, call: Call) -> Plan:
    """The plan of a forward product or an input gradient.

    Raises `DtypeError` where weights have neither the dtype of `x` nor float32 beside a 16-bit `x`, `LayerError` where
    a weight or index does not fit, `MaskError` on a wrong block and `OptionsError` on an unknown activation.
    """
    if call.activation not in _ACTIVATIONS:
        raise OptionsError(f"expected an activation among {', '.join(_ACTIVATIONS)}, got {call.activation!r}; use one")
    layers = _layers(op, call)
    for layer in layers:
        _check(call.x, layer, call.block)
    epilogues, pinned = _epilogues_of(op, call, layers), config_of(call.abi)
    kernel = _choose(op, call.x, layers, call.block, epilogues, pinned)
    constants = tuple(_constants(layer, op == "input_grad") for layer in layers)
    if kernel.run is None or pinned is not None or call.x.device.type != "cpu":
        return Plan(kernel, constants)
    return Plan(kernel, constants, _tuned(op, call, layers, epilogues))


def plan_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Block) -> Plan:
    """The plan of a weight gradient; raises as `plan` does."""
    layer = _Layer(weight, index, None, grad.shape[-1], x.shape[-1])
    _check(grad, layer, block)
    if math.prod(grad.shape[:-1]) != math.prod(x.shape[:-1]) or grad.device != x.device:
        raise LayerError(
            f"expected a gradient of as many tokens as the input, on its device, got {tuple(grad.shape)} on "
            f"{grad.device} and {tuple(x.shape)} on {x.device}; pass those of one call"
        )
    if grad.dtype != x.dtype:
        return Plan(Kernel("reference", reason="gradient and input differ in dtype"))
    return Plan(_choose("weight_grad", x, [layer], block, ()), (_constants(layer, False),))


def damage(op: Op, call: Call) -> MaskError:
    """What is wrong with the values of an index that a kernel refused."""
    return _damage(op, _layers(op, call), call.block)


def damage_weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Block) -> MaskError:
    """The same for a weight gradient."""
    return _damage("weight_grad", [_Layer(weight, index, None, grad.shape[-1], x.shape[-1])], block)


def _damage(op: Op, layers: Sequence[_Layer], block: Block) -> MaskError:
    for number, layer in enumerate(layers, 1):
        try:
            layout.kept_blocks(layer.index, layout.grid((layer.N, layer.K), (block[0], block[1])))
        except MaskError as error:
            return MaskError(f"layer {number} of {op}, of shape [{layer.N}, {layer.K}]: {error}")
    return MaskError(f"expected an index of {op} to stay as it is while its kernel runs; edit it between calls")


def _layers(op: Op, call: Call) -> list[_Layer]:
    """The layers of a call, with N outputs and K inputs each."""
    K, first = call.x.shape[-1], call.sizes[0]
    if op == "input_grad":
        K, first = first, K
    last = [] if len(call.sizes) == 1 else [(call.sizes[1], first)]
    shapes = [(first, K)] * (len(call.layers) - len(last)) + last
    return [_Layer(*tensors, *shape) for tensors, shape in zip(call.layers, shapes, strict=True)]


def spec_of(op: Op, call: Call, target: str) -> Spec | str:
    """The spec of a forward product or an input gradient on `target`, or why no kernel serves it; raises as `plan`."""
    layers = _layers(op, call)
    for layer in layers:
        _check(call.x, layer, call.block)
    return _spec(op, call.x, layers, call.block, _epilogues_of(op, call, layers), target)


def _tuned(
    op: Op, call: Call, layers: Sequence[_Layer], epilogues: tuple[Epilogue, ...]
) -> tuple[tuple[int, Kernel], ...]:
    """The kernels that the plan database names, as `Plan.tuned`."""
    spec = _spec(op, call.x, layers, call.block, epilogues, kernels.cpu_target())
    assert isinstance(spec, Spec)
    return serving.tuned_kernels(spec, shapes_of(op, call), tokens_of(call.x), partial(density_of, op, call))


def shapes_of(op: Op, call: Call) -> tuple[tuple[int, int], ...]:
    """`(N, K)` of each layer of a call."""
    return tuple((layer.N, layer.K) for layer in _layers(op, call))


def density_of(op: Op, call: Call) -> float | None:
    """Kept blocks of a call's layers over all of them, None where a masked layer has no values to read."""
    layers = _layers(op, call)
    grids = [layout.grid((layer.N, layer.K), call.block) for layer in layers]
    return serving.density([(layer.weight, layer.index) for layer in layers], grids)


def tokens_of(x: Tensor) -> int:
    """Rows of an activation; where they are symbols, those of the example that they were made from."""
    return math.prod(int(compat.size_hint(size) or 1) for size in x.shape[:-1])


def _choose(
    op: Op,
    x: Tensor,
    layers: Sequence[_Layer],
    block: Block,
    epilogues: tuple[Epilogue, ...],
    config: CpuConfig | None = None,
) -> Kernel:
    gpu = target_of(x.device)
    if gpu is None and x.device.type != "cpu":
        return Kernel("reference", reason=f"no kernels for {x.device.type} yet")
    spec = _spec(op, x, layers, block, epilogues, gpu or kernels.cpu_target())
    if isinstance(spec, str):
        return Kernel("reference", reason=spec)
    return gpu_kernels.find(spec) if gpu else kernels.kernel_for(spec, config)


def _spec(
    op: Op, x: Tensor, layers: Sequence[_Layer], block: Block, epilogues: tuple[Epilogue, ...], target: str
) -> Spec | str:
    first = layers[0].weight
    if x.dtype not in DTYPES or first.dtype not in DTYPES:
        return f"no kernels for {x.dtype}"
    if len({(layer.weight.dtype, layer.weight.dim()) for layer in layers}) > 1:
        return "layers of different dtype or form share no kernel"
    if not all(_is_readable(layer) for layer in layers):
        return "a weight, index or bias has strides that no kernel reads"
    if 0 in (*(layer.N for layer in layers), *(layer.K for layer in layers)):
        return "a layer without inputs or outputs"
    return Spec(
        op=op,
        dtype=DTYPES[x.dtype],
        weight_dtype=DTYPES[first.dtype],
        block=(block[0], block[1]),
        epilogues=epilogues,
        layout="packed" if first.dim() == 3 else "masked",
        target=target,
    )


def _epilogues_of(op: Op, call: Call, layers: Sequence[_Layer]) -> tuple[Epilogue, ...]:
    biases = tuple(layer.bias is not None for layer in layers)
    return _epilogues(op, biases, call.residual is not None, call.activation)


def _epilogues(op: Op, biases: tuple[bool, ...], residual: bool, activation: Activation) -> tuple[Epilogue, ...]:
    """Those of a forward product; gradients have none."""
    match op:
        case "linear":
            return (Epilogue(activation, bias=biases[0], residual=residual),)
        case "gated_linear":
            return (Epilogue(activation, gate=True, gate_bias=biases[0], bias=biases[1]),)
        case "mlp":
            return (Epilogue(activation, bias=biases[0]), Epilogue(bias=biases[1], residual=residual))
        case "gated_mlp":
            hidden = Epilogue(activation, gate=True, gate_bias=biases[0], bias=biases[1])
            return (hidden, Epilogue(bias=biases[2], residual=residual))
    return ()


def _constants(layer: _Layer, transposed: bool) -> tuple[int, ...]:
    weight, index = layer.weight, layer.index
    num_blocks = weight.shape[0] if weight.dim() == 3 else index.numel() - index.shape[0]
    outputs, contractions = (layer.K, layer.N) if transposed else (layer.N, layer.K)
    return (*weight.stride()[:2], outputs, contractions, num_blocks)


def _is_readable(layer: _Layer) -> bool:
    weight, index, bias = layer.weight, layer.index, layer.bias
    by_rows = weight.is_contiguous() if weight.dim() == 3 else 1 in weight.stride()
    return by_rows and index.is_contiguous() and (bias is None or bias.is_contiguous())


def _check(x: Tensor, layer: _Layer, block: Block) -> None:
    weight, index, bias, N, K = layer.weight, layer.index, layer.bias, layer.N, layer.K
    if x.dtype != weight.dtype and not (weight.dtype == torch.float32 and x.dtype in DTYPES):
        raise DtypeError(f"expected an input of the weight's dtype {weight.dtype}, got {x.dtype}; convert one of them")
    if bias is not None and bias.dtype != weight.dtype:
        raise DtypeError(f"expected a bias of the weight's dtype {weight.dtype}, got {bias.dtype}; convert one of them")
    devices = {str(tensor.device) for tensor in (x, weight, index, bias) if tensor is not None}
    if len(devices) > 1:
        raise LayerError(
            f"expected input, weight, index and bias on one device, got {', '.join(sorted(devices))}; move them"
        )
    R, C = layout.grid((N, K), block)
    if weight.dim() == 2:
        fits = weight.shape == (N, K) and index.shape == (R, 1 + C)
    else:
        fits = weight.shape[1:] == (block[1], block[0]) and index.shape == (R + 1 + weight.shape[0],)
    if not fits or index.dtype != torch.int32 or (bias is not None and bias.shape != (N,)):
        raise LayerError(
            f"expected the weight of [{N}, {K}] in {R} x {C} blocks of {tuple(block)} with its int32 index and a bias "
            f"of {N}, got weight {tuple(weight.shape)}, {index.dtype} index {tuple(index.shape)} and "
            f"bias {None if bias is None else tuple(bias.shape)}"
        )
