"""Pictures of learned masks: every layer as a heatmap, masks over training, sparsity and loss over steps.

The ending of a path says what is written: `.png`, `.svg` or whatever else matplotlib knows. No display is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from blast_compile.base.errors import BlastError, LayerError, OptionsError
from blast_compile.layers.layer import SparseLayer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 6
_INCHES = 2.2  # of one heatmap


class MaskFilm:
    """Keeps the masks of a model at chosen steps, so that they can be drawn over training."""

    def __init__(self) -> None:
        self.frames: dict[int, dict[str, Tensor]] = {}

    def take(self, model: nn.Module, step: int) -> None:
        """Remembers the masks of now, bool `[R, C]` by layer."""
        self.frames[step] = masks_of(model)


def masks_of(model: nn.Module) -> dict[str, Tensor]:
    """The kept blocks of each sparse layer, bool `[R, C]` by name. Raises `LayerError` where no layer is sparse."""
    masks = {name: layer.mask.kept for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    if not masks:
        raise LayerError("expected a model with sparse layers, got none: run sparsify_ or a Sparsifier first")
    return masks


def draw_masks(masks: Mapping[str, Tensor], path: Path) -> None:
    """One heatmap a layer: kept blocks dark. masks: bool `[R, C]` by layer, as of `masks_of`."""
    if not masks:
        raise OptionsError("expected masks of at least one layer, got none")
    num_columns = min(_COLUMNS, len(masks))
    figure, axes = _grid(math.ceil(len(masks) / num_columns), num_columns)
    for place, (name, kept) in zip(axes.flat, masks.items(), strict=False):
        _heatmap(place, kept.float(), f"{name}\n{1 - kept.float().mean():.1%} zero")
    _save(figure, path)


def draw_film(film: MaskFilm, path: Path, *, layers: Sequence[str] | None = None) -> None:
    """One row a layer: its mask at each step taken, then for how many of those steps each block was kept.

    layers: which ones, by name; by default the first few. Raises `OptionsError` for unknown ones or an empty film.
    """
    known = list(next(iter(film.frames.values()), {}))
    chosen = list(layers) if layers is not None else known[:_COLUMNS]
    if not chosen or set(chosen) - set(known):
        raise OptionsError(f"expected some of the layers {', '.join(known) or '(none was taken)'}, got {chosen}")
    figure, axes = _grid(len(chosen), len(film.frames) + 1)
    for row, name in zip(axes, chosen, strict=True):
        kept = [frame[name].float() for frame in film.frames.values()]
        for place, step, values in zip(row, film.frames, kept, strict=False):
            _heatmap(place, values, f"step {step}")
        _heatmap(row[-1], sum(kept[1:], kept[0]) / len(kept), "share of these steps")
        row[0].set_ylabel(name, fontsize=6)
    _save(figure, path)


def draw_training(
    path: Path,
    *,
    sparsity: Sequence[tuple[int, float]],
    losses: Mapping[str, Sequence[float]],
) -> None:
    """Sparsity and loss over steps. sparsity: step and fraction of zero blocks. losses: one a step, by name."""
    figure = _figure(8.0, 4.5)
    left = figure.add_subplot()
    for name, values in losses.items():
        smooth = _smoothed(values)
        left.plot(range(1, len(smooth) + 1), smooth, label=name, linewidth=1)
    left.set_xlabel("step")
    left.set_ylabel("loss, smoothed")
    left.legend(loc="center right", frameon=False)
    right = left.twinx()
    num_steps = max(map(len, losses.values()), default=0)
    shown = [*sparsity, *((num_steps, value) for step, value in sparsity[-1:] if step < num_steps)]
    right.step([step for step, _ in shown], [value for _, value in shown], "k--", where="post", linewidth=1)
    right.set_ylim(0, 1)
    right.set_ylabel("fraction of zero blocks (dashed)")
    _save(figure, path)


def _heatmap(place: Axes, values: Tensor, title: str) -> None:
    place.imshow(values.numpy(), cmap="Greys", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    place.set_axis_on()
    place.set_xticks([])
    place.set_yticks([])
    place.set_title(title, fontsize=6)


def _grid(rows: int, columns: int) -> tuple[Figure, Any]:
    """Axes `[rows, columns]`, hidden until something is drawn on them."""
    figure = _figure(columns * _INCHES, rows * _INCHES)
    axes = figure.subplots(rows, columns, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    return figure, axes


def _figure(width: float, height: float) -> Figure:
    """Outside pyplot: nothing global, no window."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BlastError("expected matplotlib, got none; pip install 'blast-compile[report]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def _smoothed(values: Sequence[float], width: int = 20) -> list[float]:
    """Mean over the last `width` values."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means
