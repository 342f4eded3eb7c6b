"""Runs loaded Triton products: on CUDA tensors, or on CPU tensors through Triton's interpreter.

Nothing here reads what lies on a device, so the host never waits. Weights, masks and indices, biases and residuals are
as in `reference.py`. order: int32 `[R]`, a permutation of the block rows of the weight (of its block columns, for an
input gradient), where the kernel's config is ordered. num_programs: the grid, where it is persistent.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blast_compile.base.errors import TargetError
from blast_compile.codegen.family import Operands
from blast_compile.codegen.triton.build import LIST_KEPT, TritonKernel
from blast_compile.codegen.triton.config import product_block
from blast_compile.codegen.triton.generate import REDUCED, meets_short_blocks
from blast_compile.codegen.triton.space import resident
from blast_compile.kernels.gpu.descriptors import descriptors
from blast_compile.masks import layout


@dataclass
class Launch:
    """Arguments by name, among them those that only some entry points take."""

    kernel: TritonKernel
    device: torch.device
    arguments: dict[str, object] = field(default_factory=dict)

    def run(self, grid: tuple[int, ...], name: str | None = None, *, is_cooperative: bool = False) -> None:
        """Runs the kernel, or one of its helpers, on a grid of programs; none, where an edge of the grid is 0.

        is_cooperative: all programs are resident at once, or the launch fails.
        """
        function, options = self.kernel.entry(name)
        arguments = {name: self.arguments[name] for name in function.arg_names}
        if 0 in grid:
            return
        if is_cooperative:
            options["launch_cooperative_grid"] = True
        with torch.cuda.device(self.device) if self.device.type == "cuda" else contextlib.nullcontext():
            function[grid](**arguments, **options)

    def take(self, prefix: str, layer: Operands) -> list[int]:
        """Takes the operands of a layer as arguments; how far a tile of a masked weight reaches, in elements."""
        weight, config = layer.weight, self.kernel.config
        is_masked = self.kernel.spec.layout == "masked"
        self.arguments |= {
            f"{prefix}weight_ptr": weight if is_masked else weight.contiguous(),
            f"{prefix}index_ptr": walked(self.kernel, layer.index),
            f"{prefix}bias_ptr": None if layer.bias is None else layer.bias.contiguous(),
        }
        if not is_masked:
            return []
        self.arguments[f"{prefix}weight_n_stride"], self.arguments[f"{prefix}weight_k_stride"] = weight.stride()
        return [config.outputs * weight.stride(0), config.inputs * weight.stride(1)]


def launch_forward(
    kernel: TritonKernel,
    x: Tensor,
    layers: Sequence[Operands],
    *,
    residual: Tensor | None = None,
    out_features: int,
    order: Tensor | None = None,
    num_programs: int | None = None,
) -> Tensor:
    """`reference.linear`, or `reference.gated_linear` where the layers are a gate and what it is multiplied with.

    Block and activation are those of the kernel's spec; the result `[..., N]` is contiguous.
    """
    named = dict(zip(("gate_", "")[-len(layers) :], layers, strict=True))
    return _product(kernel, x, named, {"residual": residual}, out_features, order, num_programs)["out"]


def launch_input_grad(
    kernel: TritonKernel,
    grad: Tensor,
    *,
    weight: Tensor,
    transposed_index: Tensor,
    in_features: int,
    up: Tensor | None = None,
    gate: Tensor | None = None,
    order: Tensor | None = None,
    num_programs: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`reference.input_grad`, `[..., K]`; through the activation of the layer before, where the spec has an epilogue.

    transposed_index: of `masks/transposed.py`, from a mask or an index. up, gate: what that activation took,
    `[..., K]`: its argument, or, beside a gate, the other factor and its argument. The second result is the gradient of
    `gate`, None without one.
    """
    operand = weight.t() if weight.dim() == 2 else weight
    layers = {"": Operands(operand, transposed_index)}
    results = _product(kernel, grad, layers, {"up": up, "gate": gate}, in_features, order, num_programs)
    return results["out"], results.get("gate_out")


def _product(
    kernel: TritonKernel,
    x: Tensor,
    layers: Mapping[str, Operands],
    others: Mapping[str, Tensor | None],
    out_features: int,
    order: Tensor | None,
    num_programs: int | None,
) -> dict[str, Tensor]:
    check_device(kernel, x)
    spec, config = kernel.spec, kernel.config
    bn, bk = product_block(spec)
    x_MK = rows(x)
    (M, K), N = x_MK.shape, out_features
    launch = Launch(kernel, x.device, {"M": M, "N": N, "K": K, "x_row_stride": x_MK.stride(0)})
    arguments = launch.arguments
    num_rows = layout.grid((N, K), (bn, bk))[0]
    if config.is_ordered:
        arguments["order_ptr"] = torch.arange(num_rows, dtype=torch.int32, device=x.device) if order is None else order
    out = x.new_empty(M, N)
    results = {"out": out}
    arguments |= {"x_ptr": x_MK, "out_ptr": out}
    spans = [config.tokens * x_MK.stride(0), config.tokens * N]
    for prefix, layer in layers.items():
        spans += launch.take(prefix, layer)
    for name, tensor in others.items():
        if tensor is None:
            continue
        arguments[f"{name}_ptr"] = rows(tensor) if name == "residual" else tensor.contiguous()
        if name == "residual":
            arguments["residual_row_stride"] = rows(tensor).stride(0)
            spans.append(config.tokens * rows(tensor).stride(0))
        elif name == "gate":
            results["gate_out"] = torch.empty_like(out)
            arguments["gate_out_ptr"] = results["gate_out"]
    arguments |= {
        "WIDE": max(spans) >= 2**31,
        "RAGGED": meets_short_blocks(spec, (N, K)),
        "INTERPRETED": kernel.is_interpreted,
    }
    if config.uses_descriptors:
        arguments |= descriptors(kernel, x_MK, {prefix: layer.weight for prefix, layer in layers.items()})
    num_tiles = -(-M // config.tokens) * num_rows * (bn // config.outputs)
    if config.splits > 1:
        arguments["partial_ptr"] = x.new_empty(len(layers), config.splits, M, N, dtype=torch.float32)
        launch.run((num_tiles, config.splits))
        launch.run((M, -(-N // REDUCED)), "reduce")
    elif config.is_persistent:
        launch.run((min(num_tiles, num_programs or num_resident(kernel, x)),))
    else:
        launch.run((num_tiles,))
    return {name: tensor.view(*x.shape[:-1], N) for name, tensor in results.items()}


def walked(kernel: TritonKernel, index: Tensor) -> Tensor:
    """What a kernel walks over: an index, or the list of a mask `[R, C]`, int32 `[R, 1 + C]`, made on its device."""
    if kernel.spec.layout == "packed":
        return index.contiguous()
    R, C = index.shape
    listed = index.new_empty(R, 1 + C, dtype=torch.int32)
    strides = {"mask_row_stride": index.stride(0), "mask_column_stride": index.stride(1)}
    launch = Launch(kernel, index.device, {"mask_ptr": index, "list_ptr": listed, "C": C, **strides})
    launch.run((R,), LIST_KEPT)
    return listed


def num_resident(kernel: TritonKernel, x: Tensor) -> int:
    """How many programs surely run at once on the GPU of `x`."""
    if not x.is_cuda:
        return 1
    return resident(kernel.spec, kernel.config) * torch.cuda.get_device_properties(x.device).multi_processor_count


def check_device(kernel: TritonKernel, x: Tensor) -> None:
    """Raises `TargetError` for CPU tensors where Triton compiles."""
    if x.is_cpu and not kernel.is_interpreted:
        raise TargetError(f"expected tensors on a GPU for {kernel.spec.target}, got {x.device}; use the CPU kernels")


def rows(tensor: Tensor) -> Tensor:
    """As a matrix whose rows are contiguous; copied only where it must be."""
    matrix = tensor.reshape(-1, tensor.shape[-1])
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
