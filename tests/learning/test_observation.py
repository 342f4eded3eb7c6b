"""Sums of movement find their way back from gradients that are not finite, and from overflow, on all ranks alike."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from blast_compile.learning import Constant, Cubic, Sparsifier
from tests.learning.learning import backward, batch, config, learner, masks, mlp, train
from tests.ranks import NUM_RANKS, on_ranks


class Careful(torch.optim.SGD):
    """Leaves out what is not finite, so that weights never become so."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        return super().step(closure)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
@pytest.mark.parametrize("score", ["l2", "saliency", "movement"])
def test_one_bad_gradient_does_not_stop_the_updates(score: str, bad: float) -> None:
    model, optimizer, sparsifier = learner(Careful, schedule=Cubic(0.8, 12), score=score)
    for step in range(14):
        optimizer.zero_grad()
        backward(model, batch(step))
        if step == 1:
            sparsifier.layers["fc1"].weight.grad[0, 0] = bad  # type: ignore[index]
        optimizer.step()
        sparsifier.step()
    assert [record.step for record in sparsifier.history] == [3, 6, 9, 12]
    assert sparsifier.sparsity() == pytest.approx(0.8, abs=0.01)


def test_blocks_that_a_bad_step_did_not_touch_count_it() -> None:
    model, optimizer, sparsifier = learner(Careful, schedule=Constant(0.5, 12), score="movement")
    train(model, optimizer, sparsifier, range(1))
    before = {name: sums.clone() for name, sums in sparsifier._seen.sums.items()}
    optimizer.zero_grad()
    backward(model, batch(1))
    row, column = sparsifier.layers["fc1"].mask.kept.nonzero()[0].tolist()
    bn, bk = sparsifier.layers["fc1"].block
    sparsifier.layers["fc1"].weight.grad[row * bn, column * bk] = torch.inf  # type: ignore[index]
    optimizer.step()
    sparsifier.step()
    changed = sparsifier._seen.sums["fc1"] != before["fc1"]
    kept = sparsifier.layers["fc1"].mask.kept.clone()
    kept[row, column] = False
    assert torch.equal(changed, kept), "all kept blocks but the one"


def test_sums_that_overflow_start_anew(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer, sparsifier = learner(Careful, schedule=Cubic(0.8, 12), score="movement")
    train(model, optimizer, sparsifier, range(2))
    sparsifier._seen.sums["fc2"].fill_(torch.inf)  # as in a state that an older version saved
    with caplog.at_level(logging.WARNING, "blast_compile"):
        train(model, optimizer, sparsifier, range(2, 7))
    assert caplog.messages == ["step 3: masks wait for the next step, a score or gradient norm is not finite"]
    assert [record.step for record in sparsifier.history] == [4, 6]


def learn_by_movement(rank: int) -> None:
    """Each rank alone meets a bad gradient, and one an overflow: the other must do as it does."""
    model = mlp()
    optimizer = Careful(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, config(schedule=Cubic(0.8, 12), score="movement"), optimizer)
    for step in range(14):
        optimizer.zero_grad()
        backward(model, batch(step))
        weight = sparsifier.layers["fc1"].weight
        assert weight.grad is not None
        dist.all_reduce(weight.grad)
        if step == 1 + rank:
            weight.grad[0, 0] = torch.inf
        optimizer.step()
        if step == 7 and rank == 1:
            sparsifier._seen.sums["fc2"][0, 0] = torch.inf
        sparsifier.step()
        for kept in masks(sparsifier).values():
            everywhere = [torch.empty_like(kept) for _ in range(NUM_RANKS)]
            dist.all_gather(everywhere, kept)
            assert all(torch.equal(kept, other) for other in everywhere), "masks are alike"
    assert [record.step for record in sparsifier.history] == [3, 6, 10, 12]


def test_ranks_find_back_alike(tmp_path: Path) -> None:
    on_ranks(learn_by_movement, tmp_path)
