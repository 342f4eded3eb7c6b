"""Runs loaded Triton weight gradients and norms of blocks; see `launch.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from blast_compile.base.errors import TargetError
from blast_compile.codegen.triton.build import TritonKernel
from blast_compile.codegen.triton.generate import strip
from blast_compile.kernels.gpu.launch import Launch, check_device, rows, walked
from blast_compile.masks import layout


def launch_weight_grad(
    kernel: TritonKernel, grad: Tensor, x: Tensor, *, weight: Tensor, index: Tensor, norms: bool = False
) -> tuple[Tensor, Tensor | None]:
    """`reference.weight_grad`; where `norms`, the norms of the kept blocks, float32 `[R, C]`, zeros elsewhere, too.

    Raises `TargetError` where norms are asked of a kernel that is split: no program of it sees a whole sum.
    """
    launch = _launch(kernel, grad, x)
    blocks = _blocks(kernel, grad, x)
    out = torch.zeros_like(weight)
    if kernel.config.splits > 1:
        if norms:
            raise TargetError(f"expected a config without splits for norms of blocks, got {kernel.config}")
        _run_split(launch, out, walked(kernel, index), blocks)
        return out, None
    squares = _squares(kernel, grad, blocks) if norms else None
    launch.arguments |= {"out_ptr": out, "index_ptr": walked(kernel, index), "norms_ptr": squares, "NORMS": norms}
    if out.dim() == 2:
        launch.arguments["out_n_stride"], launch.arguments["out_k_stride"] = out.stride()
    launch.run(_grid(kernel, blocks))
    return out, None if squares is None else squares.sum(-1).sqrt_()


def _run_split(launch: Launch, out: Tensor, index: Tensor, blocks: tuple[int, int]) -> None:
    """Partial sums of tokens, then their sum in order."""
    kernel, ((R, C), (bn, bk)) = launch.kernel, (blocks, launch.kernel.spec.block)
    splits, num_slots = kernel.config.splits, out.shape[0] if out.dim() == 3 else R * C
    partial = out.new_empty(splits, num_slots, bk * bn, dtype=torch.float32)
    launch.arguments |= {"partial_ptr": partial, "num_slots": num_slots, "out_ptr": out, "index_ptr": index}
    if out.dim() == 2:
        launch.arguments["out_n_stride"], launch.arguments["out_k_stride"] = out.stride()
    columns, rows_of_parts = _grid(kernel, blocks)
    launch.run((columns, rows_of_parts, splits))
    launch.run((columns, R * (bn // strip(kernel.config))), "reduce")


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
