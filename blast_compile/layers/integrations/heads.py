"""Guards of transformers' `resize_token_embeddings` and `tie_weights`, which read and replace weights of sparse heads.

A masked head comes out masked, with what it computed and a block mask for the new rows; a packed one is refused, and so
is a tie that would give a sparse head the dense weight of the embeddings.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from torch import nn

from blast_compile.base.errors import LayerError
from blast_compile.layers import forms
from blast_compile.layers.integrations.whereabouts import name_of
from blast_compile.layers.layer import MaskedLayer, PackedLayer, SparseLayer
from blast_compile.masks.mask import BlockMask


def guard_(library: ModuleType) -> None:
    """Wraps methods of `PreTrainedModel` in `transformers.modeling_utils`."""
    model = library.PreTrainedModel
    resize_all, resize, tie = model.resize_token_embeddings, model._get_resized_lm_head, model.tie_weights

    @functools.wraps(resize_all)
    def resize_token_embeddings(self: Any, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        if new_num_tokens is not None or args or kwargs.get("pad_to_multiple_of") is not None:
            _check_ties(self)
            _check_head(self.get_output_embeddings(), new_num_tokens)
        return resize_all(self, new_num_tokens, *args, **kwargs)

    @functools.wraps(resize)
    def _get_resized_lm_head(
        self: Any, old_lm_head: nn.Module, new_num_tokens: int | None = None, *args: Any, **kwargs: Any
    ) -> Any:
        _check_head(old_lm_head, new_num_tokens)
        if isinstance(old_lm_head, PackedLayer):
            return old_lm_head
        if isinstance(old_lm_head, MaskedLayer):
            old_lm_head.clear_dropped_()
        head = resize(self, old_lm_head, new_num_tokens, *args, **kwargs)
        if (
            isinstance(old_lm_head, MaskedLayer)
            and type(head) is nn.Linear
            and head.in_features == old_lm_head.shape[1]
        ):
            forms.to_masked_(head, _resized(old_lm_head.mask, head))
        return head

    @functools.wraps(tie)
    def tie_weights(self: Any, missing_keys: set[str] | None = None, **kwargs: Any) -> Any:
        if missing_keys is None:  # else a checkpoint is being read, whose tensors decide
            _check_ties(self)
        return tie(self, missing_keys, **kwargs)

    model.resize_token_embeddings = resize_token_embeddings
    model._get_resized_lm_head = _get_resized_lm_head
    model.tie_weights = tie_weights


def _check_head(head: nn.Module | None, new_num_tokens: int | None) -> None:
    if isinstance(head, PackedLayer) and new_num_tokens not in (None, head.out_features):
        raise LayerError(
            f"expected a dense or masked head to resize, got {name_of(head)!r}, {head}, whose blocks cannot grow; call "
            "unpack_ on the model first, and pack_ it afterwards"
        )


def _check_ties(model: Any) -> None:
    expand = getattr(model, "get_expanded_tied_weights_keys", None)
    for name in expand(all_submodels=True) if expand is not None else ():
        path, _, last = name.rpartition(".")
        layer = model.get_submodule(path) if last == "weight" else None
        if isinstance(layer, SparseLayer):
            raise LayerError(
                f"expected tied weights of dense layers, got {path!r}, {layer}, whose weight the tie would replace "
                "by a dense one; set tie_word_embeddings=False in the config, for the layer holds a weight of its own"
            )


def _resized(mask: BlockMask, head: nn.Linear) -> BlockMask:
    """The mask of a head with more or fewer rows: blocks that were kept, and those in which new rows hold values."""
    kept = BlockMask.from_nonzero(head.weight, mask.block).kept
    rows = min(len(kept), len(mask.kept))
    kept[:rows] |= mask.kept[:rows].to(kept.device)
    return BlockMask(kept, (head.out_features, head.in_features), mask.block)
