"""What a model is called with on the command line: what its function returned, or random ids, images, activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from blast_compile.backend.capture import watch
from blast_compile.base.errors import OptionsError
from blast_compile.base.models import arguments_of
from blast_compile.commands import functions
from blast_compile.layers.layer import SparseLayer
from blast_compile.ops.call import tokens_of

Arguments = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments."""
_IDS, _IMAGES = "input_ids", "pixel_values"
_IDS_UP_TO = 32_000  # of random tokens, where a config does not say


def of_transformers(model: Any) -> tuple[Callable[[int], Arguments], bool]:
    """Makes inputs for a model of transformers and a number of tokens; and whether they depend on that number.

    What it returns raises `OptionsError` for a model that takes neither token ids nor images.
    """
    name = getattr(model, "main_input_name", _IDS)
    if name == _IDS:
        return lambda tokens: _ids(model, tokens), True
    if name == _IMAGES and getattr(model.config, "image_size", None):
        return lambda _: _images(model), False
    return lambda _: _refuse(name), False


def of_function(text: str, model: nn.Module, inputs: Any) -> tuple[Callable[[int], Arguments], bool]:
    """The same for a model of `module:function`, which brings inputs, a function that makes them, or none."""
    if callable(inputs):
        return lambda tokens: _called(text, inputs, tokens), True
    if inputs is not None:
        return lambda _: arguments_of(inputs), False
    if hasattr(model, "config") and hasattr(model, "main_input_name"):
        return of_transformers(model)
    return lambda tokens: ((_activation(model, tokens),), {}), True


def tokens_in(model: nn.Module, made: Arguments) -> tuple[int, ...]:
    """The numbers of tokens that the sparse ops of a model see, ascending; runs it once."""
    args, kwargs = made
    with torch.no_grad():
        return tuple(sorted({tokens_of(op.arguments[0]) for run in watch(model, args, kwargs) for op in run.ops}))


def _ids(model: Any, tokens: int) -> Arguments:
    most = getattr(model.config.get_text_config(), "vocab_size", _IDS_UP_TO)
    ids = torch.randint(most, (1, tokens), generator=torch.Generator().manual_seed(0))
    more = {"decoder_input_ids": ids} if getattr(model.config, "is_encoder_decoder", False) else {}
    return (), {_IDS: ids, **more}


def _images(model: Any) -> Arguments:
    size, dtype = model.config.image_size, next(model.parameters()).dtype
    height, width = size if isinstance(size, Iterable) else (size, size)
    shape = (1, getattr(model.config, "num_channels", 3), height, width)
    return (), {_IMAGES: torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)}


def _refuse(name: str) -> Arguments:
    raise OptionsError(
        f"expected a model of token ids or images, got one of {name}; name a module:function that returns the model "
        "and its inputs"
    )


def _called(text: str, make: Callable[[int], Any], tokens: int) -> Arguments:
    with functions.users_code(f"the function of inputs of {text}"):
        made = make(tokens)
    return arguments_of(made)


def _activation(model: nn.Module, tokens: int) -> Tensor:
    """For its first linear layer."""
    for layer in model.modules():
        if isinstance(layer, SparseLayer | nn.Linear):
            generator = torch.Generator().manual_seed(0)
            return torch.randn(tokens, layer.in_features, generator=generator).to(layer.weight.dtype)
    raise OptionsError("expected a model with linear layers, or inputs beside it, got neither; return (model, inputs)")
