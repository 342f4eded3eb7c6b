"""`save_pretrained` and `from_pretrained` of models with sparse layers, as a quantizer of transformers 5.

The config of a saved model says which layers are sparse (`"quantization_config": {"quant_method": "blast", ...}`).
`from_pretrained` makes them sparse while the model is on the meta device, before any weight is read, so that the dense
weights of packed layers never exist. It must know of this module: import it (or `sparsify_` a model) before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from blast_compile import layout
from blast_compile.errors import CheckpointError, OptionsError
from blast_compile.integrations.dense_again import make_dense_
from blast_compile.integrations.described import check_loaded, describe, layers_to_make, make_skeleton_
from blast_compile.layers import PackedLayer, SparseLayer

METHOD = "blast"
VERSION = 1


@register_quantization_config(METHOD)
class BlastConfig(QuantizationConfigMixin):  # type: ignore[misc, unused-ignore]
    """Which layers of a saved model are sparse.

    layers: by name, as in `described.py`. Their tensors are those of the state dict, without spare blocks.
    """

    def __init__(self, layers: Mapping[str, Mapping[str, Any]] | None = None, version: int = VERSION, **_: Any) -> None:
        """Raises `CheckpointError` for the config of a newer version, which may have other fields."""
        if version > VERSION:
            raise CheckpointError(
                f"expected sparse layers described in version {VERSION}, got version {version}; upgrade blast_compile"
            )
        self.quant_method = cast(Any, METHOD)
        self.version = version
        self.layers = {name: dict(entry) for name, entry in (layers or {}).items()}


@register_quantizer(METHOD)
class BlastQuantizer(HfQuantizer):  # type: ignore[misc, unused-ignore]
    """Describes the sparse layers of a model when it is saved, and makes them when it is loaded."""

    quantization_config: BlastConfig

    def get_state_dict_and_metadata(self, model: PreTrainedModel) -> tuple[dict[str, Tensor] | None, dict[str, str]]:
        """The state dict without spare blocks; called by `save_pretrained`, first of all."""
        layers = dict(_sparse_layers(model))
        if not layers:  # they are dense again
            vars(model.config).pop("quantization_config", None)
            return None, {}
        state_dict: dict[str, Tensor] = model.state_dict()
        described = {}
        for name, layer in layers.items():
            if isinstance(layer, PackedLayer):
                weight, index = f"{name}.weight", f"{name}.block_index"
                num_rows = layout.grid(layer.shape, layer.block)[0]
                stripped = layout.strip(state_dict[weight], state_dict[index], num_rows)
                state_dict[weight], state_dict[index] = stripped
            described[name] = describe(layer, state_dict[f"{name}.block_index"])
        self.quantization_config = model.config.quantization_config = BlastConfig(described)
        return state_dict, {}

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Raises `OptionsError` where `from_pretrained` is asked to make a dense model sparse."""
        if not self.pre_quantized:
            raise OptionsError(
                "expected a model that was saved with sparse layers, got a quantization_config for a dense one; "
                "leave it out, and call sparsify_ on the model that from_pretrained returns"
            )

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        for name, layer, entry in layers_to_make(model, self.quantization_config.layers):
            make_skeleton_(name, layer, entry)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        vars(model)["is_quantized"] = False  # values are what they were: casts and training are allowed
        for name, made, entry in layers_to_make(model, self.quantization_config.layers):
            layer = cast(SparseLayer, made)
            check_loaded(name, layer, entry)
            if isinstance(layer, PackedLayer):
                most = layer.mask.kept.numel()
                values, layer.block_index = layout.refill(layer.weight.detach(), layer.block_index, most)
                layer.weight = nn.Parameter(values, requires_grad=layer.weight.requires_grad)
        return model

    def _dequantize(self, model: PreTrainedModel, dtype: Any = None) -> PreTrainedModel:  # noqa: ARG002 - values stay
        make_dense_(model)
        return model

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` can save the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters on the model can be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether the model itself can be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` takes the model."""
        return True


def announce_(model: nn.Module) -> None:
    """Gives every model of transformers in `model` that holds sparse layers a quantizer, which `save_pretrained` asks.

    Raises nothing; a quantizer of another kind stays.
    """
    for module in model.modules():
        is_known = not isinstance(module, PreTrainedModel) or getattr(module, "hf_quantizer", None) is not None
        if not is_known and any(True for _ in _sparse_layers(module)):
            vars(module)["hf_quantizer"] = BlastQuantizer(BlastConfig())


def _sparse_layers(model: nn.Module) -> Iterator[tuple[str, SparseLayer]]:
    return ((name, module) for name, module in model.named_modules() if isinstance(module, SparseLayer))
