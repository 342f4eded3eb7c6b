"""Which blocks of a weight are kept: `BlockMask`, made from scores, from bool tensors or from what a layer holds."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from blast_compile.base.errors import MaskError
from blast_compile.masks import layout
from blast_compile.masks.layout import Block


def check_sparsity(sparsity: object) -> None:
    """Raises `MaskError` unless `sparsity` is a number from 0 to 1."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, int | float) or not 0.0 <= sparsity <= 1.0:
        raise MaskError(f"expected a sparsity from 0 to 1 (the fraction of zero blocks), got {sparsity!r}")


@dataclass(frozen=True, eq=False)
class BlockMask:
    """The kept blocks of a weight `[N, K]`.

    kept: bool `[R, C]`, one entry a block, `R = ceil(N / bn)`, `C = ceil(K / bk)`; edge blocks may be short.
    shape: `(N, K)`. block: `(bn, bk)`.
    """

    kept: Tensor
    shape: tuple[int, int]
    block: Block

    def __post_init__(self) -> None:
        grid = layout.grid(self.shape, self.block)
        if self.kept.dtype != torch.bool or tuple(self.kept.shape) != grid:
            raise MaskError(
                f"expected a bool mask of {grid[0]} x {grid[1]} blocks for a weight {self.shape} in blocks of "
                f"{self.block}, got {self.kept.dtype} of shape {tuple(self.kept.shape)}; "
                "pass one entry a block, or one an element"
            )

    @classmethod
    def full(cls, shape: tuple[int, int], block: Block) -> BlockMask:
        """Keeps every block."""
        return cls(torch.ones(layout.grid(shape, block), dtype=torch.bool), shape, block)

    @classmethod
    def from_elements(cls, elements: Tensor, block: Block) -> BlockMask:
        """From a bool `[N, K]` whose blocks are each wholly kept or wholly dropped; anything else is a `MaskError`."""
        if elements.dtype != torch.bool or elements.dim() != 2:
            raise MaskError(
                f"expected a bool mask with one entry an element, got {elements.dtype} of shape {tuple(elements.shape)}"
            )
        mask = cls.from_nonzero(elements, block)
        mixed = (mask.elements() != elements).sum().item()
        if mixed:
            raise MaskError(
                f"expected a mask that keeps or drops whole blocks of {block}, got {mixed} dropped elements inside "
                "kept blocks; use a smaller block or a mask with one entry a block"
            )
        return mask

    @classmethod
    def from_tensor(cls, tensor: Tensor, shape: tuple[int, int], block: Block) -> BlockMask:
        """From a bool tensor with one entry a block `[R, C]`, or one an element `[N, K]`."""
        if tuple(tensor.shape) == shape and tuple(tensor.shape) != layout.grid(shape, block):
            return cls.from_elements(tensor, block)
        return cls(tensor, shape, block)

    @classmethod
    def from_scores(cls, scores: Tensor, sparsity: float, shape: tuple[int, int], block: Block) -> BlockMask:
        """Keeps the blocks with the highest scores `[R, C]`; among equal scores the first ones, so always the same.

        At least one block is kept, unless `sparsity` is 1.
        """
        check_sparsity(sparsity)
        num_kept = max(scores.numel() - round(sparsity * scores.numel()), 0 if sparsity == 1 else 1)
        order = torch.argsort(scores.flatten(), descending=True, stable=True)
        kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
        kept[order[:num_kept]] = True
        return cls(kept.view(scores.shape), shape, block)

    @classmethod
    def from_weight(cls, weight: Tensor, sparsity: float, block: Block) -> BlockMask:
        """Keeps the blocks of `weight` `[N, K]` with the largest Frobenius norm."""
        blocks = layout.to_blocks(weight.detach().float(), block)
        return cls.from_scores(blocks.flatten(2).norm(dim=-1), sparsity, (weight.shape[0], weight.shape[1]), block)

    @classmethod
    def from_nonzero(cls, values: Tensor, block: Block) -> BlockMask:
        """Keeps the blocks of `values` `[N, K]` that hold anything but zeros."""
        kept = layout.to_blocks(values.detach() != 0, block).flatten(2).any(-1)
        return cls(kept, (values.shape[0], values.shape[1]), block)

    @classmethod
    def from_index(cls, index: Tensor, shape: tuple[int, int], block: Block) -> BlockMask:
        """From a masked layer's mask `[R, C]` or a packed layer's index, as in `layout.py`."""
        return cls(layout.kept_blocks(index, layout.grid(shape, block)), shape, block)

    @property
    def nnz(self) -> int:
        """Number of kept blocks."""
        return int(self.kept.sum().item())

    @property
    def sparsity(self) -> float:
        """Fraction of zero blocks."""
        return 1.0 - self.nnz / max(self.kept.numel(), 1)

    @property
    def values(self) -> Tensor:
        """The mask of a masked layer, float32 `[R, C]`: 1 where a block is kept, else 0."""
        return layout.mask_values(self.kept)

    def elements(self) -> Tensor:
        """The mask spread over elements, bool `[N, K]`."""
        return layout.spread(self.kept, self.shape, self.block)
