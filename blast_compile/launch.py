"""Runs an op on its tensors: chooses the kernel and hands it addresses and sizes, or calls the reference.

This is the hot path of every call. What follows from dtypes, block and activation is remembered; nothing is remembered
of a tensor, so edited weights and masks are always seen.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from blast_compile import kernels, layout, reference
from blast_compile.codegen.spec import Dtype, Epilogue, Op, Spec
from blast_compile.errors import DtypeError, LayerError
from blast_compile.kernels import Kernel
from blast_compile.layout import Block


class Layer(NamedTuple):
    """One product: `outputs` and `contractions` are N and K, or K and N for the input gradient."""

    weight: Tensor
    blocks: Tensor  # the layer's index
    bias: Tensor | None
    outputs: int
    contractions: int


class Call(NamedTuple):
    """A forward product of any kind, or an input gradient."""

    x: Tensor
    layers: tuple[Layer, ...]
    residual: Tensor | None
    block: Block
    activation: str


def _linear(x: Tensor, w: Any, i: Any, b: Any, residual: Any, N: int, block: Block, activation: str) -> Call:
    return Call(x, (Layer(w, i, b, N, x.shape[-1]),), residual, block, activation)


def _gated_linear(
    x: Tensor, gw: Any, gi: Any, gb: Any, uw: Any, ui: Any, ub: Any, N: int, block: Block, activation: str
) -> Call:
    K = x.shape[-1]
    return Call(x, (Layer(gw, gi, gb, N, K), Layer(uw, ui, ub, N, K)), None, block, activation)


def _mlp(
    x: Tensor, uw: Any, ui: Any, ub: Any, dw: Any, di: Any, db: Any,
    residual: Any, H: int, N: int, block: Block, activation: str,
) -> Call:  # fmt: skip
    return Call(x, (Layer(uw, ui, ub, H, x.shape[-1]), Layer(dw, di, db, N, H)), residual, block, activation)


def _gated_mlp(
    x: Tensor, gw: Any, gi: Any, gb: Any, uw: Any, ui: Any, ub: Any, dw: Any, di: Any, db: Any,
    residual: Any, H: int, N: int, block: Block, activation: str,
) -> Call:  # fmt: skip
    K = x.shape[-1]
    layers = (Layer(gw, gi, gb, H, K), Layer(uw, ui, ub, H, K), Layer(dw, di, db, N, H))
    return Call(x, layers, residual, block, activation)


def _input_grad(grad: Tensor, weight: Any, index: Any, K: int, block: Block) -> Call:
    return Call(grad, (Layer(weight, index, None, K, grad.shape[-1]),), None, block, "identity")


_CALLS: dict[str, Callable[..., Call]] = {
    "linear": _linear,
    "gated_linear": _gated_linear,
    "mlp": _mlp,
    "gated_mlp": _gated_mlp,
    "input_grad": _input_grad,
}
_DTYPES: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_remembered: dict[tuple[Any, ...], Kernel] = {}


def run(op: Op, *arguments: Any) -> Tensor:
    """The result of an op; arguments as in `reference.py`.

    Raises `DtypeError` where weights have neither the dtype of `x` nor float32 beside a 16-bit `x`, and `LayerError`
    where a weight or index does not fit.
    """
    y = _weight_grad(*arguments) if op == "weight_grad" else _product(op, _CALLS[op](*arguments))
    if y is None:
        plain: Callable[..., Tensor] = getattr(reference, op)
        return plain(*arguments)
    return y


def forget() -> None:
    """Drops what is remembered, with the kernels themselves, so that changed settings are read anew."""
    _remembered.clear()
    kernels.forget()


def kernel_for(op: Op, call: Call) -> Kernel:
    """The kernel that serves a call, or the reason why the reference does."""
    x, layers, residual, block, activation = call
    forms = tuple([(layer.weight.dtype, layer.weight.dim(), layer.bias is not None) for layer in layers])
    key = (op, x.dtype, x.device.type, *block, activation, forms, residual is not None)
    kernel = _remembered.get(key)
    if kernel is None:
        kernel = _remembered[key] = _choose(op, call)
    return kernel


def describe(op: Op, *arguments: Any) -> Kernel:
    """The kernel that serves an op on such arguments, as in `reference.py`; the tensors may be fake."""
    return kernel_for(op, _CALLS[op](*arguments))


def _choose(op: Op, call: Call) -> Kernel:
    x, layers, residual, block, activation = call
    first = layers[0]
    if x.device.type != "cpu":
        return Kernel("reference", reason=f"no kernels for {x.device.type} yet")
    if x.dtype not in _DTYPES or first.weight.dtype not in _DTYPES:
        return Kernel("reference", reason=f"no kernels for {x.dtype}")
    if len({(layer.weight.dtype, layer.weight.dim()) for layer in layers}) > 1:
        return Kernel("reference", reason="layers of different dtype or form share no kernel")
    biases = tuple(layer.bias is not None for layer in layers)
    spec = Spec(
        op=op,
        dtype=_DTYPES[x.dtype],
        weight_dtype=_DTYPES[first.weight.dtype],
        block=(block[0], block[1]),
        epilogues=_epilogues(op, biases, residual is not None, activation),
        layout="packed" if first.weight.dim() == 3 else "masked",
        target=kernels.cpu_target(),
    )
    return kernels.kernel_for(spec)


def _epilogues(op: Op, biases: tuple[bool, ...], residual: bool, activation: Any) -> tuple[Epilogue, ...]:
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


def _product(op: Op, call: Call) -> Tensor | None:
    x, layers, residual, block, _ = call
    for layer in layers:
        _check(x, layer, block, op == "input_grad")
    kernel = kernel_for(op, call)
    if kernel.run is None:
        return None
    K, N = x.shape[-1], layers[-1].outputs
    y = x.new_empty((*x.shape[:-1], N))
    if not y.numel() or not K:
        return None
    rows = x if x.is_contiguous() else _rows(x)
    if residual is not None:
        residual = residual.contiguous()
    arguments = [
        torch.get_num_threads(),
        y.numel() // N,
        rows.data_ptr(),
        K if rows is x else rows.stride(0),
        y.data_ptr(),
        0 if residual is None else residual.data_ptr(),
    ]
    for weight, index, bias, outputs, contractions in layers:
        row_stride, column_stride = weight.stride()[:2]
        packed = weight.dim() == 3
        if not index.is_contiguous() or not (weight.is_contiguous() if packed else 1 in (row_stride, column_stride)):
            return None
        if bias is not None and not bias.is_contiguous():
            return None
        num_blocks = weight.shape[0] if packed else index.numel() - index.shape[0]
        arguments += (weight.data_ptr(), index.data_ptr(), 0 if bias is None else bias.data_ptr())
        arguments += (row_stride, column_stride, outputs, contractions, num_blocks)
    _start(kernel.run, arguments)
    return y


def _weight_grad(grad: Tensor, x: Tensor, weight: Tensor, index: Tensor, block: Block) -> Tensor | None:
    N, K = grad.shape[-1], x.shape[-1]
    _check(grad, Layer(weight, index, None, N, K), block, False)
    kernel = kernel_for("weight_grad", Call(grad, (Layer(weight, index, None, N, K),), None, block, "identity"))
    if kernel.run is None or grad.dtype != x.dtype or not x.numel() or not grad.numel():
        return None
    if not index.is_contiguous() or not (weight.is_contiguous() if weight.dim() == 3 else 1 in weight.stride()):
        return None
    grad, x = _rows(grad), _rows(x)
    num_rows = -(-N // block[0])
    if weight.dim() == 3:
        out, num_blocks = torch.empty_like(weight), weight.shape[0]
    else:
        out, num_blocks = torch.zeros_like(weight), index.numel() - num_rows
    arguments = [torch.get_num_threads(), x.shape[0], grad.data_ptr(), grad.stride(0), N]
    arguments += (x.data_ptr(), x.stride(0), K, num_rows, num_blocks, index.data_ptr(), out.data_ptr())
    arguments += out.stride()[:2]
    _start(kernel.run, arguments)
    return out


def _start(kernel: Callable[[int], None], arguments: list[int]) -> None:
    memory = array("q", arguments)
    kernel(memory.buffer_info()[0])


def _rows(x: Tensor) -> Tensor:
    """`x` as a matrix whose rows are contiguous."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def _check(x: Tensor, layer: Layer, block: Block, transposed: bool) -> None:
    weight, index, bias, N, K = layer
    if transposed:
        N, K = K, N
    if x.dtype != weight.dtype and not (weight.dtype == torch.float32 and x.dtype in _DTYPES):
        raise DtypeError(f"expected an input of the weight's dtype {weight.dtype}, got {x.dtype}; convert one of them")
    if bias is not None and bias.dtype != weight.dtype:
        raise DtypeError(f"expected a bias of the weight's dtype {weight.dtype}, got {bias.dtype}; convert one of them")
    R, C = layout.grid((N, K), block)
    if weight.dim() == 2:
        fits = weight.shape == (N, K) and index.shape == (R, 1 + C)
    else:
        fits = weight.shape[1:] == (block[1], block[0]) and index.shape == (R + 1 + weight.shape[0],)
    if not fits or index.dtype != torch.int32:
        raise LayerError(
            f"expected the weight of [{N}, {K}] in {R} x {C} blocks of {tuple(block)} and its int32 index, "
            f"got weight {tuple(weight.shape)} and {index.dtype} index {tuple(index.shape)}"
        )
