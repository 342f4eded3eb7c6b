"""What `prune_` refuses, and that nothing has changed then."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import blast_compile as blast
from blast_compile.base.errors import BlastError, LayerError
from tests.learning.pruned import HALF, batches, llama
from tests.models import Block, snapshot

X = torch.randn(3, 40)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "random"}, "expected a method among magnitude, wanda, sparsegpt, got 'random'"),
        ({"method": "wanda"}, "expected calibration data for 'wanda', got None"),
        ({"method": "wanda", "data": []}, "got no batch"),
        ({"method": "wanda", "data": [torch.empty(0, 40)]}, "got none for 'mlp.fc1'"),
        ({"method": "sparsegpt", "data": [X], "damping": 1e-18}, "got 1e-18; raise it"),
        ({"method": "wanda", "data": [X * float("nan")]}, "expected finite inputs of 'mlp.fc1'"),
        ({"data": [X], "budget": "global"}, "expected a budget among uniform, sensitivity, got 'global'"),
        ({"method": "sparsegpt", "data": [X], "damping": 0.0}, "expected a damping above 0"),
        ({"method": "sparsegpt", "data": [X], "round_to": "int3"}, "expected round_to among int8, int4 or None"),
        ({"round_to": "int8"}, 'with method="sparsegpt" alone'),
        ({"config": blast.BlockSparse(targets=["nowhere"])}, "match a linear layer"),
    ],
)
def test_bad_options_and_data_change_nothing(options: dict[str, Any], message: str) -> None:
    model = Block()
    before = snapshot(model)
    with pytest.raises(BlastError, match=message):
        blast.prune_(model, **options)
    assert snapshot(model) == before


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_sparse_targets_are_refused(form: str) -> None:
    model = blast.sparsify_(Block(), blast.BlockSparse(block=8))
    if form == "packed":
        blast.pack_(model)
    before = snapshot(model)
    with pytest.raises(LayerError, match=f"got 'mlp.fc1' which is {form} already"):
        blast.prune_(model, blast.BlockSparse(block=8))
    assert snapshot(model) == before


def test_weights_that_carry_a_mask_or_nan_are_refused() -> None:
    model = Block()
    model.mlp.fc1.weight.data[0, 0] = float("nan")
    with pytest.raises(LayerError, match="expected finite weights, got NaN or infinity in 'mlp.fc1'"):
        blast.prune_(model)
    model = Block()
    torch.nn.utils.prune.random_unstructured(model.mlp.fc1, "weight", 0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(LayerError, match="'mlp.fc1', which carries one of torch.nn.utils.prune"):
        blast.prune_(model)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failure_in_the_middle_leaves_every_bit(error: type[BaseException]) -> None:
    model = llama().train()
    before = snapshot(model)
    seen: list[float] = []
    last = model.model.layers[1].mlp

    def fail(*_: object) -> None:
        seen.append(model.model.layers[0].mlp.down_proj.weight.abs().sum().item())
        if len(seen) > 6:
            raise error("stopped")

    handle = last.register_forward_pre_hook(fail)
    with pytest.raises(error, match="stopped"):
        blast.prune_(model, HALF, "sparsegpt", batches())
    handle.remove()
    assert len(set(seen)) > 1  # layers before it had been pruned by then
    assert snapshot(model) == before
    assert all(module.training for module in model.modules())
