"""Savers that know nothing of sparse layers: a state dict comes back sparse where layers are, and dense where not.

Their files have no place for a description, so who loads builds the layers. What a masked layer computes is in its
dense weight too, whose dropped blocks are zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate  # type: ignore[import-untyped]
import pytest
import safetensors.torch
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.layers.layer import SparseLayer


class Net(nn.Module, PyTorchModelHubMixin):  # type: ignore[misc, unused-ignore]
    """A model as timm has them, with `save_pretrained` and `from_pretrained` of the hub's client."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(40, 72), nn.GELU(), nn.Linear(72, 40))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.mlp(x)
        return y


def sparse(form: str) -> Net:
    torch.manual_seed(0)
    model = blast.sparsify_(Net(), blast.BlockSparse(block=4, sparsity=0.5, targets="all"))
    return blast.pack_(model, dense_below=0) if form == "packed" else model


def _by_torch(model: nn.Module, other: nn.Module, folder: Path) -> None:
    torch.save(model.state_dict(), folder / "model.pt")
    other.load_state_dict(torch.load(folder / "model.pt"), strict=False)


def _by_safetensors(model: nn.Module, other: nn.Module, folder: Path) -> None:
    safetensors.torch.save_model(model, str(folder / "model.safetensors"))
    safetensors.torch.load_model(other, folder / "model.safetensors", strict=False)


def _by_accelerate(model: nn.Module, other: nn.Module, folder: Path) -> None:
    accelerate.Accelerator(cpu=True).save_model(model, folder)
    accelerate.load_checkpoint_in_model(other, str(folder))


SAVERS: dict[str, Callable[[nn.Module, nn.Module, Path], None]] = {
    "torch": _by_torch,
    "safetensors": _by_safetensors,
    "accelerate": _by_accelerate,
}


def num_sparse(model: nn.Module) -> int:
    return sum(isinstance(layer, SparseLayer) for layer in model.modules())


def masks(model: nn.Module) -> list[Tensor]:
    return [layer.mask.kept for layer in model.modules() if isinstance(layer, SparseLayer)]


def assert_same(model: nn.Module, other: nn.Module) -> None:
    x = torch.randn(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), rtol=1e-4, atol=1e-5)  # a dense product adds in another order


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("saver", SAVERS)
def test_sparse_layers_take_what_sparse_layers_gave(saver: str, form: str, tmp_path: Path) -> None:
    model, other = sparse(form), sparse(form)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
    SAVERS[saver](model, other, tmp_path)
    assert num_sparse(other) == 2
    assert_same(model, other)


@pytest.mark.parametrize("saver", SAVERS)
def test_dense_layers_compute_what_masked_ones_did(saver: str, tmp_path: Path) -> None:
    model, other = sparse("masked"), Net()
    SAVERS[saver](model, other, tmp_path)
    assert num_sparse(other) == 0
    assert_same(model, other)
    blast.sparsify_(other, blast.BlockSparse(block=4, targets="all"), masks="zeros")
    assert [kept.tolist() for kept in masks(other)] == [kept.tolist() for kept in masks(model)]
    assert num_sparse(other) == 2


@pytest.mark.parametrize("saver", SAVERS)
def test_dense_layers_refuse_packed_ones(saver: str, tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, ValueError), match="shape"):
        SAVERS[saver](sparse("packed"), Net(), tmp_path)


def test_models_of_the_hub(tmp_path: Path) -> None:
    model: Any = sparse("masked")
    model.save_pretrained(tmp_path / "masked")
    assert_same(model, Net.from_pretrained(tmp_path / "masked"))
    packed: Any = sparse("packed")
    packed.save_pretrained(tmp_path / "packed")
    with pytest.raises(RuntimeError, match="size mismatch for mlp.0.weight"):
        Net.from_pretrained(tmp_path / "packed")
