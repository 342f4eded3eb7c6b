"""Large pages: zeros like torch's in every layout, and weights that stay what they are."""

from __future__ import annotations

import platform
import re

import pytest
import torch
from torch._subclasses import FakeTensorMode

import blast_compile as blast
from blast_compile.kernels import large_pages
from blast_compile.layers.layer import MaskedLayer
from tests.mappings import have_large_pages, kb_of


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (2048, 2048)])
def test_zeros_like(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for like in (torch.ones(shape, dtype=dtype), torch.ones(shape, dtype=dtype).t()):
        zeros = large_pages._zeros_like(like)
        assert torch.equal(zeros, torch.zeros_like(like))
        assert zeros.dtype == dtype
        assert zeros.stride() == torch.empty_like(like).stride()


def test_other_memory_is_left_alone() -> None:
    """Advice goes to whole large pages inside the tensor alone."""
    asked: list[tuple[int, int]] = []

    class Watched:
        def madvise(self, start: object, length: object, _advice: int) -> None:
            asked.append((getattr(start, "value", 0), getattr(length, "value", 0)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_pages, "_c_library", Watched)
        zeros = large_pages._zeros_like(torch.empty(5 * 2**20, dtype=torch.uint8))
        large_pages._zeros_like(torch.empty(2**20, dtype=torch.uint8))
    [(start, length)] = asked
    assert start % 2**21 == length % 2**21 == 0
    assert zeros.data_ptr() <= start < start + length <= zeros.data_ptr() + zeros.numel()


def can_collapse() -> bool:
    release = re.match(r"(\d+)\.(\d+)", platform.release())
    is_new = release is not None and (int(release[1]), int(release[2])) >= (6, 1)
    return is_new and have_large_pages()


@pytest.mark.skipif(not can_collapse(), reason="needs Linux 6.1 with large pages")
def test_masked_weights_lie_on_large_pages() -> None:
    layer = torch.nn.Linear(2048, 4096, bias=False)
    before, address = layer.weight.detach().clone(), layer.weight.data_ptr()
    (sparse,) = blast.sparsify_(torch.nn.Sequential(layer), blast.BlockSparse(sparsity=0.5, block=32, targets=["0"]))
    assert layer.weight.data_ptr() == address
    assert isinstance(sparse, MaskedLayer)
    assert torch.equal(layer.weight, before.where(sparse.mask.elements(), 0.0))
    assert kb_of(address + 2**24, "AnonHugePages") >= 24 * 1024


def test_tensors_without_memory_are_left_alone() -> None:
    with FakeTensorMode():
        large_pages.gather_on_large_pages(torch.nn.Parameter(torch.empty(4096, 4096)))
    large_pages.gather_on_large_pages(torch.empty(4096, 4096, device="meta"))
