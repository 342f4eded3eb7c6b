"""Two Sparsifiers: never of one layer at a time."""

from __future__ import annotations

import copy

import pytest
import torch

import blast_compile as blast
from blast_compile.base.errors import LayerError
from blast_compile.learning import Sparsifier
from tests.learning.learning import LAYERS, config, learner, mlp, train
from tests.models import snapshot

MESSAGE = r"that no other Sparsifier learns, got 'fc1' and 1 more that one does; call its detach\(\) first"
REST = blast.BlockSparse(block=(5, 4), targets=lambda name, _: name == "fc2")
FIRST = blast.BlockSparse(block=(5, 4), targets=lambda name, _: name == "fc1")


@pytest.mark.parametrize("is_attached", [False, True])
def test_a_second_one_is_refused_and_changes_nothing(is_attached: bool) -> None:
    model, optimizer, first = learner()
    train(model, optimizer, first, range(4))
    before = snapshot(model)
    with pytest.raises(LayerError, match=MESSAGE):
        Sparsifier(model, config(), optimizer if is_attached else None)
    assert snapshot(model) == before
    train(model, optimizer, first, range(4, 8))
    assert [record.step for record in first.history] == [3, 6]


def test_one_follows_another_that_was_detached_or_dropped() -> None:
    model, optimizer, first = learner()
    first.detach()
    second = Sparsifier(model, config(), optimizer)
    with pytest.raises(LayerError, match=MESSAGE):
        first.attach(optimizer)
    train(model, optimizer, second, range(3))
    del second, optimizer  # in a cycle of hooks
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    third = Sparsifier(model, config(), optimizer)
    train(model, optimizer, third, range(3))
    first.detach()  # frees nothing that is not its own
    with pytest.raises(LayerError, match=MESSAGE):
        Sparsifier(model, config())


def test_a_copy_of_a_model_that_learns_is_free() -> None:
    model, _, _first = learner()
    Sparsifier(copy.deepcopy(model), config())


def test_two_learn_layers_of_their_own() -> None:
    model = blast.sparsify_(mlp(), LAYERS)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    first, second = (Sparsifier(model, config(layers=layers), optimizer) for layers in (FIRST, REST))
    assert (list(first.layers), list(second.layers)) == (["fc1"], ["fc2"])
