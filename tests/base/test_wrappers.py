"""What may be passed as a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from blast_compile.base.errors import LayerError
from blast_compile.base.models import bare


def test_every_wrapper_is_looked_through() -> None:
    """That of DDP needs ranks: tests/learning/test_sparsifier_ranks.py has them."""
    model = nn.Linear(2, 2)
    assert bare(model) is model
    assert bare(torch.compile(model)) is model  # type: ignore[arg-type]


def test_a_function_is_no_model() -> None:
    with pytest.raises(LayerError, match="got a function; pass the model itself"):
        bare(torch.compile(torch.relu))  # type: ignore[arg-type]
