"""Lists masks in Triton's interpreter by the kernel that does so beside others; see `interpreted.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.config import default_config
from blast_compile.kernels.gpu.launch import walked

UNWRITTEN = torch.iinfo(torch.int32).max
"""What fresh memory holds in these processes."""
SPEC = Spec("weight_grad", "float32", "float32", (16, 16), (), "masked", "cuda:sm_90")


def list_of(mask: Tensor, folder: Path, *, is_transposed: bool = False, is_part: bool = False) -> Tensor:
    """The list of a mask. is_transposed: of its transposed view. is_part: the mask is a part of a larger one."""
    if is_part:
        larger = torch.full((mask.shape[0] + 1, 2 * mask.shape[1] + 3), 7.0)
        part = larger[1:, 3::2]
        mask = part.copy_(mask)
        assert not mask.is_contiguous()
    kernel = load_kernel(SPEC, default_config(SPEC, 16), folder)
    assert kernel.is_interpreted
    return walked(kernel, mask.t() if is_transposed else mask)
