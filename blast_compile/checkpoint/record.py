"""What a file says of a sparse layer, and the two ways between its tensors in the file and those in memory.

In a file an index is always that of a packed layer, without spare blocks. A packed layer's weight is
its kept blocks alone, `[nnz, bk, bn]`; so is a masked layer's, unless other modules hold its weight too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from blast_compile.base.errors import CheckpointError, MaskError
from blast_compile.layers.kinds import masked_twin, packed_twin
from blast_compile.layers.layer import MaskedLayer, PackedLayer, SparseLayer, dense_weight
from blast_compile.masks import layout
from blast_compile.masks.layout import Block
from blast_compile.masks.old_states import is_old_packed_index, with_check_words

Form = Literal["masked", "packed"]


@dataclass(frozen=True)
class Record:
    """A sparse layer in a file.

    kind: the name of its dense class. shape: `(N, K)`. block: `(bn, bk)`. is_whole: whether a masked layer's weight is
    stored dense, as other modules read it. num_dead_blocks: as in `PackedLayer`.
    """

    form: Form
    kind: str
    shape: tuple[int, int]
    block: Block
    is_whole: bool = False
    num_dead_blocks: int = 0

    def __post_init__(self) -> None:
        """Raises `ValueError` (`MaskError` is one) or `TypeError` unless every field makes sense."""
        if self.form not in get_args(Form):
            raise ValueError(f"expected a masked or packed layer, got {self}")
        sizes: tuple[object, ...] = self.shape
        if len(sizes) != 2 or not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError(f"expected a shape (N, K), got {self.shape}")
        others: tuple[object, ...] = (self.kind, self.is_whole, self.num_dead_blocks)
        if [type(other) for other in others] != [str, bool, int]:
            raise ValueError(f"expected the fields of a sparse layer, got {self}")
        layout.check_block(self.block)

    @classmethod
    def of(cls, layer: SparseLayer, *, is_shared: bool) -> Record:
        """The record of a layer; `is_shared` says that other modules hold its weight too."""
        form: Form = "packed" if isinstance(layer, PackedLayer) else "masked"
        is_whole = isinstance(layer, MaskedLayer) and is_shared
        num_dead_blocks = layer.num_dead_blocks if isinstance(layer, PackedLayer) else 0
        return cls(form, layer.plain_class.__name__, layer.shape, layer.block, is_whole, num_dead_blocks)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Record:
        """The inverse of `to_json`; raises `ValueError` or `TypeError`."""
        return cls(**{**fields, "shape": tuple(fields["shape"]), "block": tuple(fields["block"])})

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @property
    def grid(self) -> tuple[int, int]:
        """`(R, C)`, the numbers of block rows and block columns."""
        return layout.grid(self.shape, self.block)

    def twin(self, plain: type[nn.Module]) -> type[SparseLayer] | None:
        """The sparse class for a dense one, or None where that is not this record's."""
        masked = masked_twin(plain) if plain.__name__ == self.kind else None
        return masked if masked is None or self.form == "masked" else packed_twin(masked)

    def tensors_of(self, layer: SparseLayer) -> tuple[Tensor, Tensor]:
        """Weight and index as they stand in the file; the weight is a view where it can be. Raises `MaskError`."""
        weight, kept = layer.weight.detach(), layer.mask.kept
        if isinstance(layer, PackedLayer):
            return layout.strip(weight, layer.block_index, self.grid[0])
        stored = weight if self.is_whole else layout.pack(dense_weight(layer).detach(), kept, self.block)
        return stored, layout.packed_index(kept)

    def to_memory(self, weight: Tensor, index: Tensor, *, is_transposed: bool) -> tuple[Tensor, Tensor]:
        """Weight, and mask or index, of a layer from those in the file.

        Raises `CheckpointError` where they do not fit the layer.
        `is_transposed`: whether the layer's dense weight is `[K, N]`.
        """
        try:
            index = _with_check_words(index, self.grid[0])
            kept = layout.kept_blocks(index, self.grid)
        except MaskError as error:
            raise CheckpointError(f"expected an index of {self}: {error}") from error
        num_kept, (bn, bk) = int(kept.sum()), self.block
        dense = self.shape[::-1] if is_transposed else self.shape
        expected = dense if self.is_whole else (num_kept, bk, bn)
        num_columns = layout.split_index(index, kept.shape[0])[2].numel()
        if (tuple(weight.shape), num_columns) != (expected, num_kept):
            raise CheckpointError(
                f"expected a weight of shape {expected} and an index of {num_kept} blocks for {self}, got "
                f"{tuple(weight.shape)} and {num_columns}"
            )
        if self.form == "packed":
            return layout.refill(weight, index, kept.numel())
        if not self.is_whole:
            weight = layout.unpack(weight, index, self.shape, self.block)
            weight = (weight.t() if is_transposed else weight).contiguous()
        return weight, layout.mask_values(kept)


def _with_check_words(index: Tensor, num_rows: int) -> Tensor:
    """An index as it stands in files of today, from one of any version."""
    is_whole = index.dim() == 1 and index.numel() > num_rows
    if is_whole and is_old_packed_index(index, num_rows, int(index[num_rows])):
        return with_check_words(index, num_rows)
    return index
