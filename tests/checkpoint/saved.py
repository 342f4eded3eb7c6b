"""Small models to save, and what tests look at in a saved one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import blast_compile as blast
from blast_compile.checkpoint.header import NAME
from tests.models import Block

FORMS = ("dense", "masked", "packed")


def block_model(form: str, *, seed: int = 0) -> Block:
    """`Block` with a sparse MLP; blocks under 8 run on the reference, so nothing is compiled."""
    torch.manual_seed(seed)
    model = Block()
    if form != "dense":
        blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.6))
    return blast.pack_(model) if form == "packed" else model


def on_meta() -> Block:
    with torch.device("meta"):
        return Block()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, other: nn.Module) -> None:
    first, second = model.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def shards_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def header_of(folder: Path) -> Any:
    return json.loads((folder / NAME).read_bytes())


class _Largest(TorchDispatchMode):  # type: ignore[no-untyped-call]
    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and not leaf.is_meta:
                self.num_bytes = max(self.num_bytes, leaf.nbytes)
        return result


@contextmanager
def largest_tensor() -> Iterator[_Largest]:
    """Tells the size of the largest tensor that this thread makes, the meta device left out."""
    with _Largest() as mode:  # type: ignore[no-untyped-call]
        yield mode
