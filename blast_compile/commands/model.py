"""From MODEL on the command line to a model with sparse layers, and inputs for it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blast_compile.base.errors import BlastError, OptionsError
from blast_compile.checkpoint import load_model
from blast_compile.commands import functions
from blast_compile.commands.inputs import Arguments, of_function, of_transformers, tokens_in
from blast_compile.commands.options import ModelChoice
from blast_compile.commands.output import tell
from blast_compile.layers.layer import SparseLayer
from blast_compile.layers.pack import pack_
from blast_compile.layers.sparsify import BlockSparse, sparsify_

_FORMS = "a folder of transformers, a config.json, or module:function"


@dataclass(frozen=True)
class Loaded:
    """A model, and what it is called with for so many tokens: positional and keyword arguments.

    takes_tokens: whether the inputs hold as many tokens as asked for; else they are the same for any number.
    """

    name: str
    model: nn.Module
    inputs: Callable[[int], Arguments]
    takes_tokens: bool

    def tokens(self, wanted: tuple[int, ...], *, is_asked: bool) -> tuple[int, ...]:
        """For how many tokens ops are timed or built: so many if asked for, else as many as fixed inputs hold.

        Says so where the inputs do not follow.
        """
        if self.takes_tokens:
            return wanted
        fixed = f"the inputs of {self.name} are the same for any number of tokens"
        if is_asked:
            tell(f"{fixed}: the model runs on them as they are, its ops are for {_listed(wanted)} tokens")
            return wanted
        found = tokens_in(self.model, self.inputs(1)) or wanted
        tell(f"{fixed}: its ops are for theirs, {_listed(found)}; --tokens asks for others")
        return found


def load(choice: ModelChoice) -> Loaded:
    """The model, for inference. One without sparse layers gets some, by magnitude, packed unless told otherwise.

    Raises `OptionsError` where `choice.model` is none of the forms, and what `load_model`, `sparsify_` and `pack_` do.
    """
    loaded = _find(choice)
    model = loaded.model
    if choice.weights is not None:
        load_model(model, choice.weights)
    if not any(isinstance(module, SparseLayer) for module in model.modules()):
        targets = choice.targets if choice.targets in ("mlp", "all") else [choice.targets]
        sparsify_(model, BlockSparse(sparsity=choice.sparsity, block=choice.block, targets=targets))
        if not choice.masked:
            pack_(model)
    model.eval().requires_grad_(False)
    return loaded


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


def build_dense(choice: ModelChoice) -> nn.Module:
    """The model as it is, on the meta device where it is a config of transformers: shapes without memory."""
    path = _config_path(choice)
    if path is None:
        return _find(choice).model
    with torch.device("meta"):
        return _from_config(path, choice.layers)


def _find(choice: ModelChoice) -> Loaded:
    path = Path(choice.model).expanduser()
    config = _config_path(choice)
    if config is not None:
        has_weights = config.parent == path and any(path.glob("*.safetensors*"))
        model = _from_pretrained(path) if has_weights else _from_config(config, choice.layers)
        name = path.stem if path.is_file() else path.resolve().name
        return Loaded(name, model, *of_transformers(model))
    if path.is_dir():
        raise OptionsError(
            f"expected a folder with a config.json, got {path}; for one of save_model, name the module:function that "
            "builds the model, and pass the folder as --weights"
        )
    module, colon, function = choice.model.partition(":")
    if not colon or not function or not module.strip("."):
        raise OptionsError(f"expected {_FORMS}, got {choice.model!r}, which is none of them; is the path right?")
    return _from_function(choice.model, module, function)


def _config_path(choice: ModelChoice) -> Path | None:
    path = Path(choice.model).expanduser()
    if path.is_file() and path.suffix == ".json":
        return path
    return path / "config.json" if (path / "config.json").is_file() else None


def _from_pretrained(folder: Path) -> nn.Module:
    transformers = _transformers()
    importlib.import_module("blast_compile.layers.integrations.transformers")  # which reads sparse layers
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        model: nn.Module = _class_of(config).from_pretrained(folder, dtype="auto")
    except (OSError, ValueError, RuntimeError) as error:
        raise OptionsError(f"expected a model that transformers can load, got {folder}: {error}") from error
    return model


def _from_config(path: Path, layers: int | None) -> nn.Module:
    transformers = _transformers()
    try:
        config = transformers.AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        raise OptionsError(f"expected a config of transformers, got {path}: {error}") from error
    if layers is not None:
        config.num_hidden_layers = layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:layers]
    dtype = getattr(config, "dtype", None) or torch.bfloat16
    kind = _class_of(config)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model: nn.Module = kind(config) if hasattr(kind, "config_class") else kind.from_config(config)
    return model.to(dtype)


def _class_of(config: Any) -> Any:
    """The class that a config names, else the causal language model of its kind, else the bare model."""
    transformers = _transformers()
    names = getattr(config, "architectures", None) or ()
    found = [kind for name in names if (kind := getattr(transformers, name, None)) is not None]
    if found:
        return found[0]
    is_causal = type(config) in transformers.AutoModelForCausalLM._model_mapping
    return transformers.AutoModelForCausalLM if is_causal else transformers.AutoModel


def _transformers() -> Any:
    try:
        return importlib.import_module("transformers")
    except ImportError as error:
        raise BlastError("expected transformers for a config, got none; pip install 'blast-compile[hf]'") from error


def _from_function(text: str, module: str, function: str) -> Loaded:
    build = functions.find(module, function)
    with functions.users_code(text):
        made = build()
    model, inputs = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise OptionsError(f"expected {text} to return a module, or a module and inputs, got {type(made).__name__}")
    return Loaded(function, model, *of_function(text, model, inputs))
