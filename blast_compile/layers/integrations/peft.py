"""LoRA of peft on sparse layers: adapters train beside kept blocks, and stay beside them.

peft takes packed and masked linears by itself and trains them. This module adds packed layers of GPT-2, whose sizes it
cannot read, and refuses merges: an adapter is dense, and dropped blocks have no place for what it adds to them.
"""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from peft.tuners import lora
from torch import nn

from blast_compile.base.errors import LayerError
from blast_compile.layers.layer import SparseLayer


class SparseLora(lora.Linear):  # type: ignore[misc, unused-ignore]
    """A LoRA adapter on a masked or packed layer: trains as any other, and refuses to be merged."""

    def _get_in_out_features(self, module: nn.Module) -> tuple[int, int]:
        assert isinstance(module, SparseLayer)
        return module.in_features, module.out_features

    def merge(self, *_: Any, **__: Any) -> None:
        """Raises `LayerError`."""
        raise LayerError(
            f"expected a dense layer to merge an adapter into, got {self.get_base_layer()}, whose dropped blocks would "
            "lose their part of it; keep the adapter unmerged, or merge into the dense model before sparsify_"
        )


def lora_config(config: LoraConfig) -> LoraConfig:
    """Makes `config` put `SparseLora` on sparse layers, in place, and returns it; pass it to `get_peft_model`.

    Adapters are saved and loaded as those of any model. `PeftModel.from_pretrained(..., config=lora_config(config))`
    loads them with these layers again. Raises `LayerError` for variants that read dense weights: DoRA, and all but the
    random ways to begin.
    """
    if config.use_dora:
        raise LayerError("expected plain LoRA for sparse layers, got use_dora=True, which needs norms of dense weights")
    if config.init_lora_weights not in (True, False, "gaussian"):
        raise LayerError(
            'expected init_lora_weights of True, False or "gaussian" for sparse layers, got '
            f"{config.init_lora_weights!r}, which starts from dense weights"
        )
    classes: dict[type[Any], type[Any]] = {SparseLayer: SparseLora}
    config._register_custom_module(classes)
    return config
