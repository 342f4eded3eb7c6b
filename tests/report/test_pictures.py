"""Pictures are written in the form that their names ask for, and show the masks that the model has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from blast_compile.base.errors import BlastError, LayerError, OptionsError
from blast_compile.layers.sparsify import BlockSparse, sparsify_
from blast_compile.report.pictures import MaskFilm, draw_film, draw_masks, draw_training, masks_of

_MAGIC = {".png": b"\x89PNG", ".svg": b"<?xml"}


def model(sparsity: float = 0.5) -> nn.Module:
    layers = nn.Sequential(*(nn.Linear(64, 96) for _ in range(7)))
    return sparsify_(layers, BlockSparse(block=16, sparsity=sparsity, targets="all"))


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Every figure that was saved."""
    saved: list[Figure] = []
    savefig = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        saved.append(self)
        savefig(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def shown(figure: Figure) -> list[torch.Tensor]:
    return [torch.tensor(np.asarray(image.get_array())) for place in figure.axes for image in place.images]


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_masks_are_drawn_as_they_are(tmp_path: Path, figures: list[Figure], ending: str) -> None:
    masks = masks_of(model())
    path = tmp_path / "new" / f"masks{ending}"
    draw_masks(masks, path)
    assert path.read_bytes().startswith(_MAGIC[ending])
    assert len(figures[0].axes) == 2 * 6
    drawn = shown(figures[0])
    assert len(drawn) == 7
    for kept, image in zip(masks.values(), drawn, strict=True):
        assert torch.equal(image.bool(), kept)
    assert "50.0% zero" in figures[0].axes[0].get_title()


def test_film_shows_each_step_and_how_long_blocks_stayed(tmp_path: Path, figures: list[Figure]) -> None:
    film = MaskFilm()
    for step, sparsity in ((0, 0.0), (10, 0.5)):
        film.take(model(sparsity), step)
    draw_film(film, tmp_path / "film.png", layers=["2"])
    first, last, share = shown(figures[0])
    assert first.all()
    assert last.bool().float().mean() == 0.5
    assert torch.equal(share, (first + last) / 2)
    assert [place.get_title() for place in figures[0].axes] == ["step 0", "step 10", "share of these steps"]


def test_training_is_drawn_over_steps(tmp_path: Path, figures: list[Figure]) -> None:
    draw_training(tmp_path / "t.svg", sparsity=[(0, 0.0), (2, 0.9)], losses={"dense": [4.0, 2.0, 3.0], "sparse": []})
    left, right = figures[0].axes
    assert left.lines[0].get_ydata() == pytest.approx([4.0, 3.0, 3.0])
    assert np.asarray(left.lines[0].get_xdata()).tolist() == [1, 2, 3]
    assert np.asarray(right.lines[0].get_ydata()).tolist() == [0.0, 0.9, 0.9]


def test_drawing_leaves_the_backend_alone(tmp_path: Path) -> None:
    before = dict(mpl.rcParams)
    draw_masks(masks_of(model()), tmp_path / "masks.png")
    assert dict(mpl.rcParams) == before


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LayerError, match="expected a model with sparse layers"):
        masks_of(nn.Linear(2, 2))
    with pytest.raises(OptionsError, match="at least one layer"):
        draw_masks({}, tmp_path / "masks.png")
    with pytest.raises(OptionsError, match="none was taken"):
        draw_film(MaskFilm(), tmp_path / "film.png")
    film = MaskFilm()
    film.take(model(), 1)
    with pytest.raises(OptionsError, match="expected some of the layers 0, 1"):
        draw_film(film, tmp_path / "film.png", layers=["x"])
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BlastError, match=r"blast-compile\[report\]"):
        draw_training(tmp_path / "t.png", sparsity=[], losses={})
