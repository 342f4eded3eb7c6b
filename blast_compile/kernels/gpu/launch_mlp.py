"""Runs a loaded Triton kernel of a whole MLP; see `launch.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from blast_compile.codegen.family import Operands
from blast_compile.codegen.triton.build import TritonKernel
from blast_compile.codegen.triton.generate import REDUCED
from blast_compile.kernels.gpu.launch import Launch, check_device, num_resident, rows


def launch_mlp(
    kernel: TritonKernel,
    x: Tensor,
    *,
    gate: Operands | None = None,
    up: Operands,
    down: Operands,
    residual: Tensor | None = None,
    hidden_features: int,
    out_features: int,
    num_programs: int | None = None,
) -> Tensor:
    """`reference.mlp`, or `reference.gated_mlp` with a gate: one launch, whose programs wait for each other twice.

    Of each layer weight, mask or index, and bias. num_programs: one launch a phase, each of that many programs, which
    need not fit on the device at once. Else the interpreter, which runs one program after another, runs a single one.
    Masks are listed in launches before.
    """
    check_device(kernel, x)
    spec, config = kernel.spec, kernel.config
    x_MK = rows(x)
    (M, K), H, N = x_MK.shape, hidden_features, out_features
    out = x.new_empty(M, N)
    launch = Launch(kernel, x.device)
    arguments = launch.arguments
    arguments |= {"x_ptr": x_MK, "hidden_ptr": x.new_empty(M, H), "out_ptr": out, "M": M, "N": N, "H": H, "K": K}
    arguments |= {"x_row_stride": x_MK.stride(0), "INTERPRETED": kernel.is_interpreted}
    spans = [config.tokens * size for size in (x_MK.stride(0), H, N)]
    for name, layer in (("gate", gate), ("up", up), ("down", down)):
        if layer is not None:
            spans += launch.take(f"{name}_", layer)
    if residual is not None:
        residual_MN = rows(residual)
        arguments |= {"residual_ptr": residual_MN, "residual_row_stride": residual_MN.stride(0)}
        spans.append(config.tokens * residual_MN.stride(0))
    if config.splits > 1:
        arguments["partial_ptr"] = x.new_empty(config.splits, M, N, dtype=torch.float32)
    bn, bk = spec.block
    is_ragged = any(size % edge for size, edge in ((K, bk), (H, bk), (H, bn), (N, bn)))
    arguments |= {"WIDE": max(spans) >= 2**31, "RAGGED": is_ragged}
    last = 2 if config.splits > 1 else 1
    if num_programs:
        arguments["barrier_ptr"] = None
        for phase in range(last + 1):
            arguments |= {"FIRST": phase, "LAST": phase}
            launch.run((num_programs if M else 0,))
    else:
        arguments |= {"FIRST": 0, "LAST": last, "barrier_ptr": x.new_zeros(1, dtype=torch.int32)}
        launch.run((min(num_resident(kernel, x), _most_tiles(kernel, M, H, N)),), is_cooperative=True)
    return out.view(*x.shape[:-1], N)


def _most_tiles(kernel: TritonKernel, M: int, H: int, N: int) -> int:
    """The number of tiles in the phase that has most of them."""
    config = kernel.config
    num_token_tiles = -(-M // config.tokens)
    of_products = num_token_tiles * max(-(-H // config.outputs), -(-N // config.outputs) * config.splits)
    return max(of_products, M * -(-N // REDUCED) if config.splits > 1 else 0)
