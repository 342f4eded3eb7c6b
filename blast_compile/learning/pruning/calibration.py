"""Runs a model on calibration data, and collects what its linear layers are given.

Each layer must see what the pruned layers before it make, so the model runs once for every group of layers that share
an input, and a run ends at the group. Memory stays that of one run and one `[K, K]` matrix, whatever the amount of data
and however the model is built. The price is time: half a run a group and batch, on average.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from blast_compile.base.errors import LayerError, OptionsError
from blast_compile.base.models import Inputs, arguments_of
from blast_compile.layers.layer import dense_weight
from blast_compile.learning.pruning.regions import exactly

Batch = Inputs | list[Any]
"""An only argument, a tuple or list of arguments, as a `DataLoader` makes them, or keyword arguments."""


def held(data: Iterable[Batch]) -> list[Batch]:
    """All batches, of a generator too. Raises `OptionsError` where there is none, or where one is of another form."""
    if isinstance(data, Tensor | Mapping | str) or not isinstance(data, Iterable):
        raise OptionsError(
            f"expected calibration data as an iterable of batches, got a single {type(data).__name__}; "
            "put it into a list, or pass a DataLoader"
        )
    batches = list(data)
    if not batches:
        raise OptionsError("expected calibration data, got no batch; a generator that was used before is empty")
    for batch in batches:
        if not isinstance(batch, Tensor | tuple | list | Mapping):
            raise OptionsError(
                "expected batches that are a tensor, a tuple or list of arguments, or a mapping of keyword arguments, "
                f"got a {type(batch).__name__}"
            )
    return batches


def arguments(batch: Batch) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What to call the model with."""
    return arguments_of(tuple(batch) if isinstance(batch, list) else batch)


def real_tokens(batch: Batch) -> Tensor | None:
    """Which tokens of a batch are no padding, bool `[B, T]`, where an `attention_mask` of that form says so."""
    mask = batch.get("attention_mask") if isinstance(batch, Mapping) else None
    return mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 and not mask.is_floating_point() else None


class _Reached(BaseException):
    """Ends a run of the model, and is no `Exception`, lest the model catch it with its own."""


@dataclass
class Seen:
    """What one layer was given in a survey.

    squares: sums of squares by input, float64 `[K]`. num_rows: of how many rows. num_calls: by batch. leaders: the
    layers that had the very same input just before, or the layer itself.
    """

    squares: Tensor | None = None
    num_rows: int = 0
    num_calls: list[int] = field(default_factory=list)
    leaders: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Gram:
    """`x.T @ x` over all rows that a layer was given, float64 `[K, K]`, and the number of these rows."""

    values: Tensor
    num_tokens: int


class Calibration:
    """A model and the batches it runs on; every run starts from the same random state and leaves it as it was."""

    def __init__(self, model: nn.Module, data: Iterable[Batch], layers: Mapping[str, nn.Module]) -> None:
        """Keeps the batches, so `data` may be a generator. Raises `OptionsError` where it is empty or no iterable."""
        self._model, self._layers = model, layers
        self._batches = held(data)
        self._seen: dict[str, Seen] = {name: Seen() for name in layers}
        self._order: list[str] = []
        self._cuda_devices = {tensor.device.index for tensor in model.parameters() if tensor.is_cuda}

    @property
    def num_batches(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    def survey(self, advance: Callable[[], object]) -> dict[str, Seen]:
        """Runs on everything once, and tells what each layer was given, in the order in which the model runs them.

        Raises `LayerError` where a layer was never reached, or was given NaN or infinity.
        """
        for batch in self._batches:
            self._survey_batch(batch)
            advance()
        missing = [name for name, seen in self._seen.items() if not seen.num_rows]
        if missing:
            raise LayerError(
                f"expected calibration data that reaches every layer, got none for {missing[0]!r} and "
                f"{len(missing) - 1} more; pass data that uses them, or leave them dense"
            )
        return {name: self._seen[name] for name in self._order}

    def groups(self) -> list[list[str]]:
        """The layers in the order in which the model runs them; those that share their input stand together."""
        groups: dict[str, list[str]] = {}
        for name in self._order:
            leaders = self._seen[name].leaders
            groups.setdefault(next(iter(leaders)) if len(leaders) == 1 else name, []).append(name)
        return list(groups.values())

    def gram(self, group: list[str], advance: Callable[[], object]) -> Gram:
        """What the layers of a group are given by the model as it is now. Raises `LayerError` on NaN and infinity."""
        leader = group[0]
        weight_NK = dense_weight(self._layers[leader])
        K = weight_NK.shape[1]
        total = torch.zeros(K, K, dtype=torch.float64, device=weight_NK.device)
        num_tokens = num_left = 0
        is_real: Tensor | None = None

        def collect(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal num_tokens, num_left
            x_MK = _rows(_input(args, kwargs), is_real)
            with exactly(total.device):
                total.add_(x_MK.T @ x_MK)
            num_tokens, num_left = num_tokens + len(x_MK), num_left - 1
            if num_left == 0:
                raise _Reached

        for place, batch in enumerate(self._batches):
            is_real = real_tokens(batch)
            num_left = self._seen[leader].num_calls[place]
            with _hooked({leader: self._layers[leader]}, lambda _name: collect):
                self._run(batch)
            advance()
        _check_finite(leader, total)
        if not num_tokens:  # an expert that pruned layers before it no longer route to: all its inputs count alike
            total.fill_diagonal_(1.0)
        return Gram(total, num_tokens)

    def _survey_batch(self, batch: Batch) -> None:
        last: tuple[Tensor, int, str] | None = None
        sequence: list[str] = []
        is_real = real_tokens(batch)

        def hook_of(name: str) -> Callable[..., None]:
            def collect(_layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                nonlocal last
                x, seen = _input(args, kwargs), self._seen[name]
                # In-place changes count up a tensor's version.
                version = 0 if x.is_inference() else x._version
                is_shared = last is not None and x is last[0] and version == last[1]
                last = (x, version, last[2] if is_shared and last is not None else name)
                seen.leaders.add(last[2])
                x_MK = _rows(x, is_real)
                squares = x_MK.square().sum(0, dtype=torch.float64)
                _check_finite(name, squares)
                seen.num_rows += len(x_MK)
                seen.squares = squares if seen.squares is None else seen.squares + squares
                sequence.append(name)

            return collect

        with _hooked(self._layers, hook_of):
            self._run(batch)
        for name, seen in self._seen.items():
            seen.num_calls.append(sequence.count(name))
        _merge(self._order, sequence)

    def _run(self, batch: Batch) -> None:
        args, kwargs = arguments(batch)
        with torch.no_grad(), torch.random.fork_rng(self._cuda_devices), suppress(_Reached):
            self._model(*args, **kwargs)


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], hook_of: Callable[[str], Callable[..., None]]) -> Iterator[None]:
    handles = [
        layer.register_forward_pre_hook(hook_of(name), with_kwargs=True, prepend=True) for name, layer in layers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The only argument of a linear layer, however it was passed."""
    x = args[0] if args else next(iter(kwargs.values()))
    assert isinstance(x, Tensor)
    return x


def _rows(x: Tensor, is_real: Tensor | None) -> Tensor:
    """The input as `[M, K]`, in float32 at least; padding left out where it has a row for each token of the batch."""
    x_MK = x.detach().reshape(-1, x.shape[-1])
    if is_real is not None and x.shape[:-1] in (is_real.shape, (is_real.numel(),)):
        x_MK = x_MK[is_real.flatten().to(x.device)]
    return x_MK.to(torch.promote_types(x.dtype, torch.float32))


def _merge(order: list[str], sequence: list[str]) -> None:
    """Puts names that are new behind the one that came before them in this run; batches may take different ways."""
    place = 0
    for name in sequence:
        if name not in order:
            order.insert(place, name)
        place = max(place, order.index(name) + 1)


def _check_finite(name: str, sums: Tensor) -> None:
    if not sums.isfinite().all():
        raise LayerError(
            f"expected finite inputs of {name!r}, got NaN or infinity; look for them in the calibration data and in "
            "the model's weights"
        )
