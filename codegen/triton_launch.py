"""Runs a loaded Triton kernel: on CUDA tensors, or on CPU tensors through Triton's interpreter."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from blast_compile import layout
from blast_compile.codegen.triton_build import TritonKernel
from blast_compile.errors import TargetError


def launch_linear(
    kernel: TritonKernel,
    x: Tensor,
    *,
    weight: Tensor,
    index: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    out_features: int,
) -> Tensor:
    """`reference.linear` with the block and the activation of the kernel's spec; `[..., N]`, contiguous."""
    operands = {"weight": weight, "index": index, "bias": bias}
    return _launch(kernel, x, operands, residual, out_features)


def launch_gated_linear(
    kernel: TritonKernel,
    x: Tensor,
    *,
    gate_weight: Tensor,
    gate_index: Tensor,
    gate_bias: Tensor | None = None,
    up_weight: Tensor,
    up_index: Tensor,
    up_bias: Tensor | None = None,
    out_features: int,
) -> Tensor:
    """`reference.gated_linear` with the block and the activation of the kernel's spec; `[..., N]`, contiguous."""
    gate = {"gate_weight": gate_weight, "gate_index": gate_index, "gate_bias": gate_bias}
    up = {"weight": up_weight, "index": up_index, "bias": up_bias}
    return _launch(kernel, x, gate | up, None, out_features)


def _launch(
    kernel: TritonKernel,
    x: Tensor,
    operands: dict[str, Tensor | None],
    residual: Tensor | None,
    out_features: int,
) -> Tensor:
    if x.is_cpu and not kernel.is_interpreted:
        raise TargetError(f"expected tensors on a GPU for {kernel.spec.target}, got {x.device}; use the CPU kernels")
    spec, config = kernel.spec, kernel.config
    x_MK = _rows(x)
    (M, K), N = x_MK.shape, out_features
    out = x.new_empty(M, N)
    arguments: dict[str, object] = {
        "x_ptr": x_MK,
        "out_ptr": out,
        "M": M,
        "N": N,
        "K": K,
        "x_row_stride": x_MK.stride(0),
    }
    for name, tensor in operands.items():
        if tensor is None:
            continue
        is_masked_weight = name.endswith("weight") and spec.layout == "masked"
        arguments[f"{name}_ptr"] = tensor if is_masked_weight else tensor.contiguous()
        if is_masked_weight:
            arguments[f"{name}_n_stride"], arguments[f"{name}_k_stride"] = tensor.stride()
    if residual is not None:
        residual_MN = _rows(residual)
        arguments |= {"residual_ptr": residual_MN, "residual_row_stride": residual_MN.stride(0)}
    arguments["RAGGED"] = K % spec.block[1] != 0 or (spec.layout == "masked" and N % spec.block[0] != 0)
    if "INTERPRETED" in kernel.function.arg_names:
        arguments["INTERPRETED"] = kernel.is_interpreted
    num_token_tiles, num_output_tiles = layout.grid((M, N), (config.tokens, config.outputs))
    num_programs = num_token_tiles * num_output_tiles
    if num_programs:
        with torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext():
            kernel.function[(num_programs,)](**arguments, num_warps=config.num_warps, num_stages=config.num_stages)
    return out.view(*x.shape[:-1], N)


def _rows(tensor: Tensor) -> Tensor:
    """As a matrix whose rows are contiguous; copied only where it must be."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()
