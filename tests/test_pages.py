"""Zeros on large pages are zeros like torch's, in every layout."""

from __future__ import annotations

import pytest
import torch

from blast_compile import pages


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(0, 5), (3, 5), (2048, 2048)])
def test_zeros_like(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for like in (torch.ones(shape, dtype=dtype), torch.ones(shape, dtype=dtype).t()):
        zeros = pages.zeros_like(like)
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
        patch.setattr(pages, "_c_library", Watched)
        zeros = pages.zeros_like(torch.empty(5 * 2**20, dtype=torch.uint8))
        pages.zeros_like(torch.empty(2**20, dtype=torch.uint8))
    [(start, length)] = asked
    assert start % 2**21 == length % 2**21 == 0
    assert zeros.data_ptr() <= start < start + length <= zeros.data_ptr() + zeros.numel()
