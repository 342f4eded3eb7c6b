"""Random tensors of a case: packed or masked layers with random masks, and the dense ones beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.on_gpu.cases import Case
from blast_compile.masks import layout
from blast_compile.masks.mask import BlockMask
from blast_compile.ops.products import reference

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class SparseLayer:
    """One layer as the ops take it: operand and mask or index, and of what it stands for."""

    operand: Tensor
    index: Tensor
    shape: tuple[int, int]
    block: tuple[int, int]

    def dense(self, dtype: torch.dtype) -> Tensor:
        """`W * mask`, `[N, K]`."""
        return reference.dense_weight(self.operand, self.index, *self.shape, self.block).to(dtype)

    @property
    def num_bytes(self) -> int:
        """That a product reads."""
        return sum(t.numel() * t.element_size() for t in (self.operand, self.index))


def sparse_layers(case: Case, device: str, generator: torch.Generator) -> list[SparseLayer]:
    """Packed layers of a case, with random values: no dense weight is ever made."""
    return [packed(shape, case.block, case.sparsity, DTYPES[case.dtype], device, generator) for shape in case.layers]


def rotation(layers: list[SparseLayer], number: int) -> list[list[SparseLayer]]:
    """The layers and copies of them, so many together: who runs them in turns finds none in a cache."""
    copies = [
        [replace(layer, operand=layer.operand.clone(), index=layer.index.clone()) for layer in layers]
        for _ in range(number - 1)
    ]
    return [layers, *copies]


def packed(
    shape: tuple[int, int],
    block: int,
    sparsity: float,
    dtype: torch.dtype,
    device: str,
    generator: torch.Generator,
) -> SparseLayer:
    """A packed layer that keeps random blocks."""
    kept = random_mask(shape, block, sparsity, device, generator)
    values = torch.randn(int(kept.sum()), block, block, device=device, generator=generator)
    values *= (shape[1] * (1 - sparsity)) ** -0.5
    return SparseLayer(values.to(dtype), layout.packed_index(kept), shape, (block, block))


def random_mask(shape: tuple[int, int], block: int, sparsity: float, device: str, generator: torch.Generator) -> Tensor:
    """Bool `[R, C]`, as magnitude gives it for random weights."""
    scores = torch.rand(layout.grid(shape, (block, block)), device=device, generator=generator)
    return BlockMask.from_scores(scores, sparsity, shape, (block, block)).kept.to(device)


def dense_weights(
    shapes: Sequence[tuple[int, int]], dtype: str, device: str, generator: torch.Generator
) -> list[Tensor]:
    """Random dense weights: speed does not depend on where zeros are."""
    return [
        (torch.randn(shape, device=device, generator=generator) * shape[1] ** -0.5).to(DTYPES[dtype])
        for shape in shapes
    ]
