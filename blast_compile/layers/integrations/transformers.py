"""`save_pretrained` and `from_pretrained` of models with sparse layers, as a quantizer of transformers 5.

The config of a saved model says which layers are sparse (`"quantization_config": {"quant_method": "blast", ...}`). That
is read off the layers when `save_pretrained` is called: this module wraps that method of `PreTrainedModel`, and hands
it the state dict and a config of the save's own. `from_pretrained` makes the layers sparse while the model is on the
meta device, before any weight is read, so that the dense weights of packed layers never exist. It must know of this
module: import it (or `sparsify_` a model) before. Neither leaves anything behind on a model or its config.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from blast_compile.base.errors import CheckpointError, OptionsError
from blast_compile.base.log import logger
from blast_compile.layers.integrations import described
from blast_compile.layers.integrations.dense_again import make_dense_
from blast_compile.layers.integrations.described import METHOD, VERSION, Entry
from blast_compile.layers.integrations.describing import describe_state


@register_quantization_config(METHOD)
class BlastConfig(QuantizationConfigMixin):  # type: ignore[misc, unused-ignore]
    """Which layers of a saved model are sparse.

    layers: by name, as in `described.py`. Their tensors are those of the state dict, without spare blocks.
    """

    def __init__(self, layers: Mapping[str, Entry] | None = None, version: int = VERSION, **_: Any) -> None:
        """Raises `CheckpointError` for the config of a newer version."""
        described.check_version(version)
        self.quant_method = cast(Any, METHOD)
        self.version = version
        self.layers = {name: dict(entry) for name, entry in (layers or {}).items()}


@register_quantizer(METHOD)
class BlastQuantizer(HfQuantizer):  # type: ignore[misc, unused-ignore]
    """Makes the sparse layers of a model while `from_pretrained` loads it."""

    quantization_config: BlastConfig

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Raises `OptionsError` where `from_pretrained` is asked to make a dense model sparse."""
        if not self.pre_quantized:
            raise OptionsError(
                "expected a model that was saved with sparse layers, got a quantization_config for a dense one; "
                "leave it out, and call sparsify_ on the model that from_pretrained returns"
            )

    def _process_model_before_weight_loading(
        self, model: PreTrainedModel, checkpoint_files: list[str] | None = None, **_: Any
    ) -> PreTrainedModel:
        names, config = _names_in(checkpoint_files), self.quantization_config
        self._made = described.make_skeletons_(model, config.layers, names, version=config.version)
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **_: Any) -> PreTrainedModel:
        described.settle_(model, self._made, was_read=_was_read)
        _forget_loading_(model)
        return model

    def is_serializable(self) -> bool:
        """Whether `save_pretrained` can save the model."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters on the model can be trained."""
        return True


def _names_in(files: list[str] | None) -> set[str] | None:
    """The names of the tensors in safetensors files; None for others, which would have to be read for that."""
    if not files or any(Path(file).suffix != ".safetensors" for file in files):
        return None
    names: set[str] = set()
    for file in files:
        with safe_open(file, framework="pt") as opened:
            names |= set(opened.keys())
    return names


def _was_read(tensor: Tensor) -> bool:
    return bool(getattr(tensor, "_is_hf_initialized", False))


def _forget_loading_(model: PreTrainedModel) -> None:
    """Takes away what `from_pretrained` notes of a quantized model: values are what they were, casts are allowed."""
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        vars(model).pop(name, None)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            vars(module.config).pop("_is_quantized", None)
    _forget_description_(model.config)


def _forget_description_(config: PreTrainedConfig) -> None:
    """Takes descriptions of sparse layers out of a config and those that it holds."""
    if _method_of(config) == METHOD:
        del config.quantization_config
    for inner in vars(config).values():
        if isinstance(inner, PreTrainedConfig):
            _forget_description_(inner)


def _method_of(config: PreTrainedConfig) -> object:
    found = vars(config).get("quantization_config")
    return found.get("quant_method") if isinstance(found, Mapping) else getattr(found, "quant_method", None)


def _describing(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`save_pretrained` that looks for sparse layers first."""
    signature = inspect.signature(plain)

    @functools.wraps(plain)
    def save_pretrained(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(self, *args, **kwargs)
        if isinstance(vars(self).get("hf_quantizer"), BlastQuantizer):  # a model that an earlier version pickled
            _forget_loading_(self)
        if getattr(self, "_hf_peft_config_loaded", False):  # adapters alone are saved
            return plain(*bound.args, **bound.kwargs)
        entries: dict[str, Entry] = {}
        if described.sparse_layers(self):
            given = bound.arguments.get("state_dict")
            state_dict = self.state_dict() if given is None else given
            state_dict, entries = describe_state(self, state_dict, _fetch_of(self))
            if _can_say_so(self, entries, is_distributed=bool(bound.arguments.get("distributed_checkpoint"))):
                bound.arguments["state_dict"] = state_dict
            else:
                return plain(*bound.args, **bound.kwargs)
        with _config_of_save(self, entries):
            return plain(*bound.args, **bound.kwargs)

    return save_pretrained


def _fetch_of(model: PreTrainedModel) -> Callable[[str], Tensor]:
    return lambda name: load_offloaded_parameter(model, name)


def _can_say_so(model: PreTrainedModel, entries: Mapping[str, Entry], *, is_distributed: bool) -> bool:
    """Whether a saved config can describe the layers; raises `CheckpointError` where one that cannot would not load."""
    other = getattr(model, "hf_quantizer", None)
    if other is None and not is_distributed:
        return True
    why = "distributed_checkpoint=True" if other is None else f"layers quantized by {type(other).__name__}"
    if any(entry["form"] == "packed" for entry in entries.values()):
        raise CheckpointError(
            f"expected packed layers alone, got {why} too, and save_pretrained cannot say both; save with "
            "blast_compile.save_model, or unpack_ the model first"
        )
    if other is None:
        return True
    logger.warning("%s: the saved config does not say which layers are sparse; they will load as dense ones", why)
    return False


@contextmanager
def _config_of_save(model: PreTrainedModel, entries: Mapping[str, Entry]) -> Iterator[None]:
    """Gives `model` a copy of its config with `entries`, or without any, for as long as it is saved."""
    live, saved = model.config, copy.deepcopy(model.config)
    _forget_description_(saved)
    if entries:
        saved.quantization_config = BlastConfig(entries)
    model.config = saved
    try:
        yield
    finally:
        model.config = live
        live.dtype, live.architectures = saved.dtype, saved.architectures  # as save_pretrained leaves them


def _dense_again(plain: Callable[..., Any]) -> Callable[..., Any]:
    """`dequantize` that makes a model with sparse layers dense."""

    @functools.wraps(plain)
    def dequantize(self: PreTrainedModel, dtype: torch.dtype | None = None) -> Any:
        if getattr(self, "hf_quantizer", None) is not None or not described.sparse_layers(self):
            return plain(self, dtype)
        make_dense_(self)
        return self if dtype is None else cast(Any, self).to(dtype)

    return dequantize


PreTrainedModel.dequantize = _dense_again(PreTrainedModel.dequantize)  # type: ignore[method-assign]
PreTrainedModel.save_pretrained = _describing(PreTrainedModel.save_pretrained)  # type: ignore[method-assign]
