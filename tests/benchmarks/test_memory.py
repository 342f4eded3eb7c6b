"""Bytes that a call allocates, counted exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.memory import Allocated, allocated


def test_peak_and_what_is_left() -> None:
    def call() -> Tensor:
        big = torch.empty(1000, dtype=torch.uint8)
        small = torch.empty(300, dtype=torch.uint8)
        del big
        return small

    assert allocated(call) == Allocated(peak_bytes=1300, kept_bytes=300)
    assert allocated(lambda: None) == Allocated(0, 0)
