"""Runs loaded Triton weight gradients and norms of blocks; see `triton_launch`."""

from __future__ import annotations

import torch
from torch import Tensor

from blast_compile import layout
from blast_compile.codegen.triton_build import TritonKernel
from blast_compile.codegen.triton_launch import Launch, check_device, rows


def launch_weight_grad(
    kernel: TritonKernel, grad: Tensor, x: Tensor, *, weight: Tensor, index: Tensor, norms: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`reference.weight_grad`; where `norms`, the norms of the kept blocks, float32 `[R, C]`, zeros elsewhere, too."""
    launch = _launch(kernel, grad, x)
    blocks = _blocks(kernel, grad, x)
    out = torch.zeros_like(weight)
    squares = _squares(kernel, grad, blocks) if norms else None
    launch.arguments |= {"out_ptr": out, "index_ptr": index.contiguous(), "norms_ptr": squares, "NORMS": norms}
    if out.dim() == 2:
        launch.arguments["out_n_stride"], launch.arguments["out_k_stride"] = out.stride()
    launch.run(_grid(kernel, blocks))
    return out, None if squares is None else squares.sum(-1).sqrt_()


def launch_block_norms(kernel: TritonKernel, grad: Tensor, x: Tensor, *, probe: Tensor) -> Tensor:
    """`reference.block_norms`, float32 `[R, C]`; the kernel is that of a weight gradient."""
    launch = _launch(kernel, grad, x)
    blocks = _blocks(kernel, grad, x)
    squares = _squares(kernel, grad, blocks)
    launch.arguments |= {"probe_ptr": probe.contiguous(), "norms_ptr": squares}
    launch.run(_grid(kernel, blocks), "block_norms")
    return squares.sum(-1).sqrt_()


def _launch(kernel: TritonKernel, grad: Tensor, x: Tensor) -> Launch:
    check_device(kernel, x)
    (bn, bk), tokens = kernel.spec.block, kernel.config.tokens
    grad_MN, x_MK = rows(grad), rows(x)
    (M, N), K = grad_MN.shape, x_MK.shape[1]
    arguments = {
        "grad_ptr": grad_MN,
        "x_ptr": x_MK,
        "M": M,
        "N": N,
        "K": K,
        "grad_row_stride": grad_MN.stride(0),
        "x_row_stride": x_MK.stride(0),
        "WIDE": tokens * max(grad_MN.stride(0), x_MK.stride(0)) >= 2**31,
        "RAGGED": N % bn != 0 or K % bk != 0,
        "INTERPRETED": kernel.is_interpreted,
    }
    return Launch(kernel, x.device, arguments)


def _blocks(kernel: TritonKernel, grad: Tensor, x: Tensor) -> tuple[int, int]:
    return layout.grid((grad.shape[-1], x.shape[-1]), kernel.spec.block)


def _grid(kernel: TritonKernel, blocks: tuple[int, int]) -> tuple[int, int]:
    (R, C), config = blocks, kernel.config
    parts_n, parts_k = _parts(kernel)
    return parts_k * -(-C // config.blocks), parts_n * R


def _parts(kernel: TritonKernel) -> tuple[int, int]:
    """How many tiles a block is cut into."""
    (bn, bk), config = kernel.spec.block, kernel.config
    return bn // config.outputs, bk // config.inputs


def _squares(kernel: TritonKernel, like: Tensor, blocks: tuple[int, int]) -> Tensor:
    parts_n, parts_k = _parts(kernel)
    return like.new_zeros(*blocks, parts_n * parts_k, dtype=torch.float32)
