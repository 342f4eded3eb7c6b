"""Small models for tests of layers and surgery."""

from __future__ import annotations

import copy
from typing import cast

import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.layers.layer import MaskedLayer, SparseLayer
from blast_compile.masks.mask import BlockMask


class Mlp(nn.Module):
    """Two linears; ragged under blocks of 16."""

    def __init__(self, features: int = 40, hidden: int = 72) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc2(torch.relu(self.fc1(x)))
        return y


class Block(nn.Module):
    """An attention-like projection and an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(40, 40)
        self.mlp = Mlp()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.proj(x) + self.mlp(x)
        return y


def dense_twin(dense: nn.Module, masks: dict[str, BlockMask]) -> nn.Module:
    """A copy of a dense model, masks multiplied into its `nn.Linear` weights: what the sparse model must equal."""
    twin = copy.deepcopy(dense)
    for name, mask in masks.items():
        weight = twin.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.data.mul_(mask.elements())
    return twin


def sparse_mlp(*, packed: bool = False) -> tuple[Mlp, nn.Module, Mlp]:
    """A sparse MLP, its masked-dense twin, and the dense model both came from."""
    torch.manual_seed(0)
    dense = Mlp()
    sparse = blast.sparsify_(copy.deepcopy(dense), blast.BlockSparse(block=(16, 8), sparsity=0.6))
    masks = {name: m.mask for name, m in sparse.named_modules() if isinstance(m, SparseLayer)}
    assert set(masks) == {"fc1", "fc2"}
    return (blast.pack_(sparse) if packed else sparse), dense_twin(dense, masks), dense


def sparse_layer(model: nn.Module, name: str) -> MaskedLayer:
    """The sparse layer called `name`; a packed one too, as far as the type checker goes."""
    layer = model.get_submodule(name)
    assert isinstance(layer, SparseLayer)
    return cast(MaskedLayer, layer)


def classes(model: nn.Module) -> dict[str, str]:
    """The class name of every leaf module."""
    return {name: type(module).__name__ for name, module in model.named_modules() if not list(module.children())}


def snapshot(model: nn.Module) -> list[tuple[str, object, object]]:
    """Everything that surgery may change: classes, parameters and buffers, with their identity and values."""
    modules = [(name, type(module), sorted(vars(module))) for name, module in model.named_modules()]
    tensors = [(name, id(tensor), tensor.tolist()) for name, tensor in model.state_dict(keep_vars=True).items()]
    return [*modules, *tensors]
