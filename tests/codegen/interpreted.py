"""Runs a Triton kernel in Triton's interpreter, in a process of its own.

The interpreter must be chosen before Triton is imported, and a process that chose it can no longer compile.
"""

from __future__ import annotations

import mmap
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from blast_compile.codegen.family import Operands
from blast_compile.codegen.spec import Dtype, Epilogue, Layout, Spec
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.config import TritonConfig, default_config
from blast_compile.kernels.gpu.launch import launch_forward
from blast_compile.kernels.gpu.launch_mlp import launch_mlp
from blast_compile.masks import layout
from tests.op_cases import Call, Case, Layer, make_call, relative_error


def choose_interpreter() -> None:
    """Prepares a fresh process. What a kernel leaves unwritten will be NaN."""
    assert "triton" not in sys.modules
    os.environ["TRITON_INTERPRET"] = "1"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)


def spec_of(case: Case) -> Spec:
    is_gated = case.op in ("gated_linear", "gated_mlp")
    has_residual = case.residual and case.op != "gated_linear"
    if case.op in ("mlp", "gated_mlp"):
        hidden = Epilogue(case.activation, case.bias, is_gated, is_gated and case.bias)
        epilogues: tuple[Epilogue, ...] = (hidden, Epilogue(bias=case.bias, residual=has_residual))
    else:
        epilogues = (Epilogue(case.activation, case.bias, is_gated, is_gated and case.bias, has_residual),)
    weight_dtype = _dtype(case.weight_dtype or case.dtype)
    form: Layout = "packed" if case.form == "packed" else "masked"
    return Spec(case.op, _dtype(case.dtype), weight_dtype, case.block, epilogues, form, "cuda:sm_90")


def _dtype(dtype: torch.dtype) -> Dtype:
    names: dict[torch.dtype, Dtype] = {
        torch.float32: "float32",
        torch.bfloat16: "bfloat16",
        torch.float16: "float16",
    }
    return names[dtype]


def error_of(
    case: Case,
    folder: Path,
    leading: tuple[int, ...] = (7,),
    sizes: tuple[int, int, int] | None = None,
    density: float = 0.4,
    config: TritonConfig | None = None,
    num_spare: int = 0,
    padding: int = 3,
    num_programs: int | None = None,
    far: str = "",
) -> float:
    """The relative error of a kernel on a call made by `make_call`, against float64; infinite where a result is NaN.

    `x` lies in rows wider by `padding`, which is NaN, so that reading over a row's end is seen. num_spare: unused
    blocks at the end of packed values, NaN too. num_programs: of a persistent kernel. far: "weight" or "residual", to
    lie where 32 bits do not reach. An ordered kernel gets a shuffled order.
    """
    call = make_call(case, leading, sizes, density=density)
    for layer in call.layers if num_spare else []:
        layer.operand = F.pad(layer.operand, (0, 0, 0, 0, 0, num_spare), value=float("nan"))
        layer.index = F.pad(layer.index, (0, num_spare), value=2**31 - 1)
    call.x = in_wider_rows(call.x, padding)
    if far == "weight":
        call.layers = [_far_away(layer) for layer in call.layers]
    elif far == "residual":
        assert call.residual is not None
        call.residual = in_wider_rows(call.residual, 2**28)
    result = run(call, folder, config, num_programs)
    assert result.dtype == call.x.dtype
    assert result.is_contiguous()
    expected = call.dense()
    assert result.shape == expected.shape
    return relative_error(result, expected)


def in_wider_rows(tensor: Tensor, padding: int = 3) -> Tensor:
    """The same values in rows that are followed by NaN, so that reading over a row's end is seen.

    Far behind a row's end nothing is written, so rows may be further apart than this machine has memory.
    """
    if not tensor.numel():
        return tensor
    *leading, width = tensor.shape
    num_bytes = tensor[..., 0].numel() * (width + padding) * tensor.itemsize
    with tempfile.TemporaryFile() as file:
        file.truncate(num_bytes)
        memory = mmap.mmap(file.fileno(), num_bytes)
    wide = torch.frombuffer(memory, dtype=tensor.dtype).view(*leading, width + padding)
    wide[..., width : width + 16] = float("nan")
    wide[..., :width] = tensor
    return wide[..., :width]


def _far_away(layer: Layer) -> Layer:
    """The same layer, whose last blocks at least lie beyond 2**31 elements."""
    if layer.operand.dim() == 2:
        is_transposed = layer.operand.stride(0) == 1
        matrix = layer.operand.t() if is_transposed else layer.operand
        wide = in_wider_rows(matrix, 2**26)  # and those from the 32nd row on
        return replace(layer, operand=wide.t() if is_transposed else wide)
    (num_blocks, bk, bn), R = layer.operand.shape, layer.kept.shape[0]
    skipped = 2**31 // (bk * bn)  # stored first, and no part of any row
    with tempfile.TemporaryFile() as file:
        file.truncate((skipped + num_blocks) * bk * bn * layer.operand.itemsize)
        memory = mmap.mmap(file.fileno(), 0)
    values = torch.frombuffer(memory, dtype=layer.operand.dtype).view(-1, bk, bn)
    values[skipped:] = layer.operand
    offsets, words, columns = layout.split_index(layer.index, R)
    return replace(layer, operand=values, index=torch.cat([offsets + skipped, words, F.pad(columns, (skipped, 0))]))


def run(call: Call, folder: Path, config: TritonConfig | None = None, num_programs: int | None = None) -> Tensor:
    spec = spec_of(call.case)
    kernel = load_kernel(spec, config or default_config(spec, call.x[..., 0].numel()), folder)
    assert kernel.is_interpreted
    first, last = call.layers[0], call.layers[-1]
    num_rows = first.kept.shape[0]
    order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    if call.case.op in ("mlp", "gated_mlp"):
        gate, up, down = [None, *(Operands(layer.operand, layer.index, layer.bias) for layer in call.layers)][-3:]
        assert up is not None
        assert down is not None
        return launch_mlp(
            kernel,
            call.x,
            gate=gate,
            up=up,
            down=down,
            residual=call.residual,
            hidden_features=first.clean.shape[0],
            out_features=last.clean.shape[0],
            num_programs=num_programs,
        )
    return launch_forward(
        kernel,
        call.x,
        [Operands(layer.operand, layer.index, layer.bias) for layer in call.layers],
        residual=call.residual,
        out_features=last.clean.shape[0],
        order=order,
        num_programs=num_programs,
    )
