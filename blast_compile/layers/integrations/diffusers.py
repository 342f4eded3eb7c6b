"""`save_pretrained` and `from_pretrained` of models of diffusers with sparse layers, as a quantizer of that library.

As for transformers: `ModelMixin.save_pretrained` is wrapped, looks for sparse layers when it is called, and describes
them in the saved config alone; `from_pretrained` makes them on the meta device. It must know of this module: import it
(or `sparsify_` a model) before; without it, it refuses the unknown method.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, cast

from diffusers.configuration_utils import FrozenDict
from diffusers.models.modeling_utils import ModelMixin
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor

from blast_compile.base.errors import CheckpointError, OptionsError
from blast_compile.layers.integrations import described
from blast_compile.layers.integrations.dense_again import make_dense_
from blast_compile.layers.integrations.described import METHOD, VERSION, Entry
from blast_compile.layers.integrations.describing import describe_state


class _Method(StrEnum):
    """What diffusers asks for the name of a method by `.value`."""

    BLAST = METHOD


class BlastConfig(QuantizationConfigMixin):  # type: ignore[misc, unused-ignore]
    """Which layers of a saved model are sparse: by name, as in `described.py`."""

    def __init__(self, layers: Mapping[str, Entry] | None = None, version: int = VERSION, **_: Any) -> None:
        """Raises `CheckpointError` for the config of a newer version."""
        described.check_version(version)
        self.quant_method = cast(Any, _Method.BLAST)
        self.version = version
        self.layers = {name: dict(entry) for name, entry in (layers or {}).items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"quant_method": METHOD, "version": self.version, "layers": self.layers}

    def to_diff_dict(self) -> dict[str, Any]:
        """The same: `repr` of the class above asks for it."""
        return self.to_dict()


class BlastQuantizer(DiffusersQuantizer):  # type: ignore[misc, unused-ignore]
    """Makes the sparse layers of a model while it is loaded, and leaves out spare blocks when it is saved."""

    quantization_config: BlastConfig
    _tensors: set[str] | None = None

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Raises `OptionsError` where `from_pretrained` is asked to make a dense model sparse."""
        if not self.pre_quantized:
            raise OptionsError(
                "expected a model that was saved with sparse layers, got a quantization_config for a dense one; "
                "leave it out, and call sparsify_ on the model that from_pretrained returns"
            )

    def maybe_update_loaded_keys(self, loaded_keys: list[str], *_: Any) -> list[str]:
        """Takes down the names in the checkpoint, and changes none."""
        self._tensors = set(loaded_keys)
        return loaded_keys

    def _process_model_before_weight_loading(self, model: ModelMixin, **_: Any) -> ModelMixin:
        config = self.quantization_config
        self._made = described.make_skeletons_(model, config.layers, self._tensors, version=config.version)
        return model

    def _process_model_after_weight_loading(self, model: ModelMixin, **_: Any) -> ModelMixin:
        described.settle_(model, self._made, was_read=lambda tensor: not tensor.is_meta)
        for name in ("is_quantized", "quantization_method"):  # values are what they were: casts are allowed
            vars(model).pop(name, None)
        vars(model)["_internal_dict"] = _without_description(model.config)
        return model

    def _dequantize(self, model: ModelMixin) -> ModelMixin:
        make_dense_(model)
        return model

    @property
    def is_serializable(self) -> bool:
        """Whether `save_pretrained` can save the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters on the model can be trained."""
        return True


class _Saving(BlastQuantizer):
    """Hands `save_pretrained` the state dict that the saved config describes."""

    def __init__(self, state_dict: dict[str, Tensor]) -> None:
        super().__init__(BlastConfig())
        self._state_dict = state_dict

    def get_state_dict_and_metadata(self, *_: Any, **__: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """In place of what `state_dict()` gave."""
        return self._state_dict, {}


def _without_description(config: Mapping[str, Any]) -> FrozenDict:
    found = config.get("quantization_config")
    method = found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)
    left_out = ("quantization_config",) if method == METHOD else ()
    return FrozenDict({key: value for key, value in config.items() if key not in left_out})  # type: ignore[no-untyped-call]


def _describing(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`save_pretrained` that looks for sparse layers first."""

    @functools.wraps(plain)
    def save_pretrained(self: ModelMixin, *args: Any, **kwargs: Any) -> Any:
        state_dict: dict[str, Tensor] | None = None
        entries: dict[str, Entry] = {}
        if described.sparse_layers(self):
            state_dict, entries = describe_state(self, self.state_dict())
            _check_quantizer(self, entries)
        with _noted_for_save(self, state_dict, entries):
            return plain(self, *args, **kwargs)

    return save_pretrained


def _check_quantizer(model: ModelMixin, entries: Mapping[str, Entry]) -> None:
    other = vars(model).get("hf_quantizer")
    if entries and other is not None and not isinstance(other, BlastQuantizer):
        raise CheckpointError(
            f"expected sparse layers alone, got layers quantized by {type(other).__name__} too, and save_pretrained "
            "cannot say both; save with torch.save(model.state_dict()), or make the sparse layers dense first"
        )


@contextmanager
def _noted_for_save(
    model: ModelMixin, state_dict: dict[str, Tensor] | None, entries: Mapping[str, Entry]
) -> Iterator[None]:
    """Gives `model` a config with `entries`, or without any, and their state dict, for as long as it is saved."""
    noted = vars(model)
    live, quantizer = noted["_internal_dict"], noted.get("hf_quantizer")
    saved = _without_description(live)
    if entries:
        saved = FrozenDict({**saved, "quantization_config": BlastConfig(entries)})  # type: ignore[no-untyped-call]
    noted["_internal_dict"] = saved
    if state_dict is not None:
        noted["hf_quantizer"] = _Saving(state_dict)
    try:
        yield
    finally:
        noted["_internal_dict"] = live
        noted.pop("hf_quantizer", None)
        if quantizer is not None:
            noted["hf_quantizer"] = quantizer


AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = BlastConfig
AUTO_QUANTIZER_MAPPING[METHOD] = BlastQuantizer
ModelMixin.save_pretrained = _describing(ModelMixin.save_pretrained)  # type: ignore[method-assign]
