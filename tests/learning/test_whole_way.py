"""From a new model to a packed one in a file, as a user goes: sparse, compiled, trained with learned masks, stored."""

from __future__ import annotations

from pathlib import Path

import torch

import blast_compile as blast
from blast_compile.layers.layer import PackedLayer
from blast_compile.learning import Cubic, PruneAndGrow, Sparsifier
from tests.nets import BLOCK, Counted, Net, x_of


def test_train_pack_save_and_load(tmp_path: Path) -> None:
    layers = blast.BlockSparse(block=BLOCK, sparsity=1 / 3, targets="all")
    model, x = blast.sparsify_(Net(), layers), x_of(16, 8)
    target = Net().requires_grad_(False)(x.roll(1, -1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    config = PruneAndGrow(Cubic(2 / 3, end=20, initial=1 / 3), layers, interval=4, grow_frac=0.5)
    sparsifier = Sparsifier(model, config, optimizer)
    training, losses = Counted(), []
    compiled = torch.compile(model, backend=training, fullgraph=True)
    for _ in range(40):
        optimizer.zero_grad()
        loss = (compiled(x) - target).square().mean()
        torch.autograd.backward(loss)
        optimizer.step()
        sparsifier.step()
        losses.append(loss.item())
    assert training.num_calls == 1, "five updates of masks, and one graph"
    assert [record.step for record in sparsifier.history] == [4, 8, 12, 16, 20]
    assert sum(change.grown for record in sparsifier.history for change in record.layers.values()) > 0
    assert losses[-1] < losses[0] / 2
    sparsifier.detach()
    assert {layer.mask.nnz for layer in sparsifier.layers.values()} == {2}, "a third of six"
    expected = model(x).detach()

    blast.pack_(model)
    assert sum(isinstance(module, PackedLayer) for module in model.modules()) == 6
    blast.save_model(model, tmp_path / "model")
    loaded = blast.load_model(Net(), tmp_path / "model")
    with torch.no_grad():
        found = torch.compile(loaded, backend=Counted(), fullgraph=True)(x)
    torch.testing.assert_close(found, expected)
