"""What sparse layers keep: checkpoints of every form, copies, pickles."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import blast_compile as blast
from tests.models import Mlp, sparse_layer, sparse_mlp


def both(test: Callable[..., None]) -> Callable[..., None]:
    marked: Callable[..., None] = pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])(test)
    return marked


@pytest.mark.parametrize("assign", [False, True])
def test_dense_checkpoints_load_into_masked_layers(assign: bool) -> None:
    sparse, _, _ = sparse_mlp()
    other = Mlp()
    before = sparse_layer(sparse, "fc1").mask.kept
    result = sparse.load_state_dict(other.state_dict(), strict=True, assign=assign)
    assert not result.missing_keys
    assert not result.unexpected_keys
    kept = sparse_layer(sparse, "fc1").mask
    assert torch.equal(kept.kept, before)
    assert torch.equal(sparse.fc1.weight, other.fc1.weight.where(kept.elements(), 0.0))
    assert other.fc1.weight[~kept.elements()].all(), "the checkpoint's own tensors stay as they are"


def test_a_checkpoint_without_weights_is_still_incomplete() -> None:
    sparse, _, _ = sparse_mlp()
    with pytest.raises(RuntimeError, match=r"fc1\.block_mask"):
        sparse.load_state_dict({}, strict=True)


@both
def test_state_dicts_go_round_through_files(packed: bool) -> None:
    sparse, twin, _ = sparse_mlp(packed=packed)
    file = io.BytesIO()
    torch.save(sparse.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other, _, _ = sparse_mlp(packed=packed)
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    for _, buffer in other.named_buffers():
        buffer.zero_()
    other.load_state_dict(loaded, strict=True)
    x = torch.randn(4, 40)
    torch.testing.assert_close(other(x), twin(x))


def test_masks_come_with_checkpoints() -> None:
    sparse, twin, _ = sparse_mlp()
    other = blast.sparsify_(Mlp(), blast.BlockSparse(block=(16, 8), sparsity=0.1))
    other.load_state_dict(sparse.state_dict())
    x = torch.randn(4, 40)
    torch.testing.assert_close(other(x), twin(x))


@both
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies_are_whole_and_independent(clone: Callable[[Mlp], Mlp], packed: bool) -> None:
    sparse, twin, _ = sparse_mlp(packed=packed)
    other = clone(sparse)
    with torch.no_grad():
        sparse.fc1.weight.zero_()
        sparse_layer(sparse, "fc1").index_operand().zero_()
    x = torch.randn(4, 40)
    torch.testing.assert_close(other(x), twin(x))
    assert repr(other.fc1).endswith(f"block=(16, 8), {'packed' if packed else 'masked'})")
