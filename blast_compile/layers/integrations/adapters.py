"""Guards of peft's adapters on sparse layers, whoever made them: what they compute is right, or refused.

Adapters of every kind derive from one class of peft, and what puts them into a model from another. The methods of their
subclasses, present and future, are wrapped; the wrappers look at the layer below, and leave dense ones alone.

A masked layer holds zeros in its dropped blocks, so what an adapter reads is the truth. One that begins by writing the
weight (PiSSA, OLoRA, ...) would fill dropped blocks: it is refused. A merge fills them, as it was asked to: the mask
grows by the blocks that hold something then, and shrinks again with `unmerge`. A packed layer has a weight of another
shape, in which dropped blocks have no place: adapters that read it are refused, as are all merges.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from blast_compile.base.errors import LayerError
from blast_compile.layers.integrations.merges import (
    cannot_merge,
    filled_blocks,
    is_under_the_mask,
    merge_into,
    unmerge_from,
)
from blast_compile.layers.integrations.subclasses import Method, follow_
from blast_compile.layers.integrations.whereabouts import name_of
from blast_compile.layers.layer import MaskedLayer, PackedLayer, SparseLayer, dense_weight

Guard = Callable[[Any, Any, Any], Any]
ON_PACKED: Mapping[str, tuple[bool | str, ...] | None] = {
    **dict.fromkeys(("adalora", "beft", "boft", "c3a", "fourierft", "gralora", "ia3", "lily", "oft", "poly", "pvera")),
    **dict.fromkeys(("randlora", "road", "unilora", "vblora", "vera", "waveft")),
    "lora": (True, False, "gaussian", "eva", "orthogonal"),
    "miss": (True, False),
}
"""The packages of `peft.tuners` whose adapters never look into the weight below them, but for its device and dtype.

Where other ways to begin do, those that do not: values of `init_lora_weights` or `init_weights`.
"""
_BLIND_VARIANTS = frozenset(f"{name}LinearVariant" for name in ("ALora", "Arrow", "BdLora", "Monteclora", "Velora"))


def guard_(library: ModuleType) -> None:
    """Wraps methods of all that derives from `BaseTunerLayer` or `BaseTuner` of `peft.tuners.tuners_utils`."""
    for base, guards in ((library.BaseTunerLayer, _LAYER_GUARDS), (library.BaseTuner, _TUNER_GUARDS)):
        follow_(base, guards)
    tuner = library.BaseTuner
    tuner._check_merge_allowed = _before(tuner._check_merge_allowed, _check_merges)


def readers_below(model: nn.Module) -> Iterator[tuple[str, str]]:
    """The layers of a model, by name, whose weight an adapter may look into, and what that adapter is."""
    from peft.tuners.tuners_utils import BaseTunerLayer  # loaded by now, or nothing would be guarded

    kind: type[Any] = BaseTunerLayer
    for name, module in model.named_modules():
        if isinstance(module, kind) and "base_layer" in module._modules and reads_weight(module):
            yield f"{name}.base_layer".removeprefix("."), f"{type(module).__name__} of {type(module).__module__}"


def reads_weight(adapter: nn.Module) -> bool:
    """Whether an adapter of peft may look into the weight of the layer that it wraps; unknown ones may."""
    variants = {type(variant).__name__ for variant in vars(adapter).get("lora_variant", {}).values()}
    is_blind = _package(adapter) in ON_PACKED and not is_under_the_mask(adapter)
    return not is_blind or not variants <= _BLIND_VARIANTS


def _package(part: object) -> str:
    """The package of `peft.tuners` that an adapter, or what makes it, comes from; of a subclass, that of its base."""
    names = (kind.__module__.split(".") for kind in type(part).__mro__)
    return next((name[2] for name in names if name[:2] == ["peft", "tuners"] and len(name) > 2), "")


def _before(method: Method, check: Method) -> Method:
    """`method` behind a check of the same arguments."""

    @functools.wraps(method)
    def checked(*args: Any, **kwargs: Any) -> Any:
        check(*args, **kwargs)
        return method(*args, **kwargs)

    return checked


def _around(guard: Guard) -> Callable[[Method], Method]:
    """Lets `guard` call a method where the layer below is sparse; one that calls its like is guarded once."""

    def wrapper(method: Method) -> Method:
        @functools.wraps(method)
        def guarded(self: Any, *args: Any, **kwargs: Any) -> Any:
            base, call = _below(self, args, kwargs), functools.partial(method, self, *args, **kwargs)
            key = (id(self), merge_into if guard is unmerge_from else guard)
            if not isinstance(base, SparseLayer) or key in _running:
                return call()
            _running.add(key)
            try:
                return guard(self, base, call)
            finally:
                _running.discard(key)

        return guarded

    return wrapper


_running: set[tuple[int, Guard]] = set()
"""Adapters, by id, and the guards that call a method of theirs."""


def _below(part: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] = MappingProxyType({})) -> object:
    """The innermost layer below an adapter; while it is made, below the layer that its `__init__` is given first."""
    layer = vars(part).get("_modules", {}).get("base_layer")
    if layer is None:
        layer = kwargs.get("base_layer", args[0] if args else None)
    while isinstance(layer, nn.Module) and "base_layer" in layer._modules:
        layer = layer._modules["base_layer"]
    return layer


_found_as: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()
"""Under which names tuners found sparse layers: while an adapter is made, no module holds it."""


def _name(base: nn.Module) -> str:
    return _found_as.get(base) or name_of(base)


def _check_target(tuner: Any, _config: object, _name: str, target: nn.Module, *_: Any, **kwargs: Any) -> None:
    """Before a tuner puts an adapter around a layer."""
    base = _below(target, (target,))
    if not isinstance(base, SparseLayer):
        return
    _found_as[base] = kwargs.get("current_key") or name_of(base)
    if isinstance(base, PackedLayer) and _package(tuner) not in ON_PACKED:
        raise _cannot_read(tuner, base)
    if _package(tuner) == "glora":
        raise LayerError(
            f"expected a dense layer for {type(tuner).__name__}, which takes plain nn.Linear alone, got "
            f"{_found_as[base]!r}, {base}; take another kind of adapter"
        )


def _check_model(tuner: Any, model: nn.Module, config: Any, *_: Any, **__: Any) -> None:
    """Before a tuner looks at the weights of all its targets."""
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer) and tuner._check_target_module_exists(config, name):
            _check_target(tuner, config, "", layer, current_key=name)
            if isinstance(layer, MaskedLayer):
                layer.clear_dropped_()


def _make(adapter: Any, base: SparseLayer, make: Method) -> None:
    if isinstance(base, PackedLayer) and reads_weight(adapter):
        raise _cannot_read(adapter, base)
    vars(base).pop("merges", None)  # of adapters that are gone
    make()


def _start(adapter: Any, base: SparseLayer, start: functools.partial[None]) -> None:
    """A new adapter, the first or a further one, of a layer."""
    given = [*start.args[1:], *start.keywords.values()]
    configs = [value for value in given if hasattr(value, "peft_type")]
    if isinstance(base, PackedLayer):
        _check_start(adapter, base, configs)
        start()
        return
    assert isinstance(base, MaskedLayer)
    base.clear_dropped_()
    _check_norms(adapter, base, configs)
    before = base.weight.data
    start()
    if filled_blocks(base).any():
        base.weight.data = before
        raise LayerError(
            f"expected an adapter that begins without a change of weights, got one of {type(adapter).__module__} that "
            f"fills dropped blocks of the masked layer {_name(base)!r}; let init_lora_weights be True, or begin with "
            "the dense model, before sparsify_"
        )


def _check_norms(adapter: Any, base: MaskedLayer, configs: Iterable[Any]) -> None:
    """DoRA divides by the norm of each row of the weight."""
    is_dora = any("Dora" in type(_variant(adapter, config)).__name__ for config in configs)
    if is_dora and not base.weight.is_meta and not dense_weight(base).any(dim=1).all():
        raise LayerError(
            f"expected weights in every row of {_name(base)!r} for DoRA, which divides by their norm, got rows of "
            "zeros; take plain LoRA (use_dora=False), or a mask that keeps a block in each row"
        )


def _variant(adapter: Any, config: Any) -> object:
    """The variant of LoRA that a config asks for, or None."""
    return adapter.resolve_lora_variant(config=config) if hasattr(adapter, "resolve_lora_variant") else None


def _check_start(adapter: Any, base: PackedLayer, configs: Iterable[Any]) -> None:
    for config in configs:
        begins = getattr(config, "init_lora_weights", getattr(config, "init_weights", True))
        blind = ON_PACKED[_package(adapter)]
        if blind is not None and begins not in blind:
            raise _cannot_read(adapter, base, f" that begins with {begins!r}")
        variant = _variant(adapter, config)
        if variant is not None and type(variant).__name__ not in _BLIND_VARIANTS:
            raise _cannot_read(adapter, base, f" with {type(variant).__name__}")


def _cannot_read(part: object, base: PackedLayer, what: str = "") -> LayerError:
    return LayerError(
        f"expected an adapter that never reads the weight of the packed layer {_name(base)!r}, got "
        f"{type(part).__name__} of {type(part).__module__}{what}; take plain LoRA, or call unpack_ on the model first"
    )


def _check_merges(tuner: Any) -> None:
    """Before the first of a model's adapters is merged."""
    for module in tuner.model.modules():
        below = _below(module)
        if isinstance(below, PackedLayer):
            raise cannot_merge(below)


_LAYER_GUARDS = {
    "__init__": _around(_make),
    "update_layer": _around(_start),
    "merge": _around(merge_into),
    "unmerge": _around(unmerge_from),
}
_TUNER_GUARDS = {
    "_create_and_replace": functools.partial(_before, check=_check_target),
    "_pre_injection_hook": functools.partial(_before, check=_check_model),
}
