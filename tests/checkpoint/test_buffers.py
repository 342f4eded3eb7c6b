"""What a module holds beside its parameters: buffers in and out of its state, and extra state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import blast_compile as blast
from blast_compile.base.errors import CheckpointError


def test_extra_state_is_refused(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 1}

    model = nn.Sequential(nn.Linear(4, 4), Counting(4, 4))
    with pytest.raises(CheckpointError, match="got '1', a Counting with extra state; keep that state in buffers"):
        blast.save_model(model, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_buffers_that_are_no_part_of_the_state_keep_their_values(tmp_path: Path) -> None:
    models = [nn.Linear(4, 4) for _ in range(2)]
    for value, model in enumerate(models):
        model.register_buffer("cache", torch.full((2,), float(value)), persistent=False)
    blast.save_model(models[0], tmp_path)
    blast.load_model(models[1], tmp_path)
    assert torch.equal(models[1].weight, models[0].weight)
    assert models[1].cache.tolist() == [1.0, 1.0]  # type: ignore[operator]


def test_a_buffer_that_is_expanded_over_shared_memory_takes_values_of_its_own(tmp_path: Path) -> None:
    models = [nn.Linear(4, 4) for _ in range(2)]
    for model, buffer in zip(models, (torch.arange(4.0), torch.zeros(1).expand(4)), strict=True):
        model.register_buffer("scale", buffer)
    blast.save_model(models[0], tmp_path)
    blast.load_model(models[1], tmp_path)
    assert torch.equal(models[1].scale, torch.arange(4.0))  # type: ignore[arg-type]
