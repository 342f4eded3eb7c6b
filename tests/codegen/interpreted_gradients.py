"""Runs the Triton kernels of gradients in Triton's interpreter; see `interpreted.py`. The truth is dense float64."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from blast_compile.codegen.spec import Epilogue, Op, Spec
from blast_compile.codegen.triton.build import TritonKernel, load_kernel
from blast_compile.codegen.triton.config import TritonConfig, default_config
from blast_compile.kernels.gpu.launch import launch_input_grad
from blast_compile.kernels.gpu.launch_gradients import launch_block_norms, launch_weight_grad
from blast_compile.masks import layout
from blast_compile.masks.transposed import transposed_index
from blast_compile.ops.activations import ACTIVATIONS
from tests.codegen.interpreted import in_wider_rows, spec_of
from tests.op_cases import Call, Case, make_call, relative_error

Sizes = tuple[int, int, int]


def input_grad_error(
    case: Case,
    folder: Path,
    num_tokens: int = 7,
    sizes: Sizes | None = None,
    density: float = 0.4,
    config: TritonConfig | None = None,
    before: Epilogue | None = None,
    padding: int = 3,
    num_programs: int | None = None,
) -> float:
    """The relative error of an input gradient, the larger one where there are two.

    before: the epilogue of the layer before, through whose activation the gradient goes on.
    """
    call = make_call(case, (num_tokens,), sizes, density=density)
    layer = call.layers[0]
    grad = _random_like(call, layer.clean.shape[0], seed=1)
    up, gate = (_random_like(call, layer.clean.shape[1], seed) for seed in (2, 3))
    is_gated = before is not None and before.gate
    kernel = _load(case, "input_grad", (before,) if before else (), grad, folder, config)
    blocks = layout.grid((layer.clean.shape[0], layer.clean.shape[1]), case.block)
    order = torch.randperm(blocks[1], generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    result, gate_result = launch_input_grad(
        kernel,
        in_wider_rows(grad, padding),
        weight=layer.operand,
        transposed_index=transposed_index(layer.index, blocks),
        in_features=layer.clean.shape[1],
        up=up if before else None,
        gate=gate if is_gated else None,
        order=order,
        num_programs=num_programs,
    )
    assert result.dtype == grad.dtype
    expected = grad.double() @ layer.clean
    if before is None:
        return relative_error(result, expected)
    up, gate = up.double().requires_grad_(), gate.double().requires_grad_()
    activation = ACTIVATIONS[before.activation]
    hidden = activation(gate) * up if is_gated else activation(up)
    gradients = torch.autograd.grad(hidden, [up, gate], expected, allow_unused=True)
    error = relative_error(result, gradients[0])
    return error if gate_result is None else max(error, relative_error(gate_result, gradients[1]))


def weight_grad_error(
    case: Case,
    folder: Path,
    num_tokens: int = 37,
    sizes: Sizes | None = None,
    density: float = 0.4,
    config: TritonConfig | None = None,
    padding: int = 3,
) -> tuple[float, float, float]:
    """The relative errors of a weight gradient, of the norms of its kept blocks, and of those of probed blocks.

    A split kernel gives no norms of kept blocks: that error is 0.
    """
    call = make_call(case, (num_tokens,), sizes, density=density)
    layer, x = call.layers[0], in_wider_rows(call.x, padding)
    (N, K), kept = layer.clean.shape, layer.kept
    grad = _random_like(call, N, seed=1)
    kernel = _load(case, "weight_grad", (), grad, folder, config)
    result, norms = launch_weight_grad(
        kernel,
        in_wider_rows(grad, padding),
        x,
        weight=layer.operand,
        index=layer.index,
        norms=kernel.config.splits == 1,
    )
    assert (result.dtype, result.stride()) == (layer.operand.dtype, layer.operand.stride())
    dense = grad.double().t() @ call.x.double()
    expected = dense * layout.spread(kept, (N, K), case.block)
    probe = torch.rand(kept.shape, generator=torch.Generator().manual_seed(4)).round()
    probed = launch_block_norms(kernel, grad, x, probe=probe)
    unpacked = layout.unpack(result, layer.index, (N, K), case.block) if case.form == "packed" else result
    return (
        relative_error(unpacked, expected),
        0.0 if norms is None else relative_error(norms, _norms(dense, case, kept)),
        relative_error(probed, _norms(dense, case, probe)),
    )


def _norms(dense: Tensor, case: Case, kept: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(layout.to_blocks(dense, case.block), dim=(2, 3))
    return norms * kept


def _load(
    case: Case,
    op: Op,
    epilogues: tuple[Epilogue, ...],
    grad: Tensor,
    folder: Path,
    config: TritonConfig | None,
) -> TritonKernel:
    linear = spec_of(case)
    spec = Spec(op, linear.dtype, linear.weight_dtype, case.block, epilogues, linear.layout, linear.target)
    kernel = load_kernel(spec, config or default_config(spec, grad.shape[0]), folder)
    assert kernel.is_interpreted
    return kernel


def _random_like(call: Call, features: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(call.x.shape[0], features, generator=generator, dtype=torch.float64).to(call.x.dtype)
