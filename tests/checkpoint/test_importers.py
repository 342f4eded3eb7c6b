"""Importers: zero blocks of dense checkpoints and block-sparse tensors of torchao become sparse layers."""

from __future__ import annotations

import json
import logging
import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import CheckpointError
from blast_compile.checkpoint import import_dense, import_torchao
from tests.checkpoint.saved import block_model, largest_tensor, on_meta
from tests.families import FAMILIES, dense_twin, output, sparse
from tests.models import Block, classes, snapshot, sparse_layer

BLOCKS_OF_4 = blast.BlockSparse(block=4)
pytestmark = pytest.mark.filterwarnings("ignore:Sparse BSR tensor support is in beta")


def zeroed() -> Block:
    """A dense model with zero blocks in its MLP."""
    model = block_model("masked")
    for name in ("mlp.fc1", "mlp.fc2"):
        layer = sparse_layer(model, name)
        layer.weight.data.mul_(layer.mask.elements())
    dense = Block()
    dense.load_state_dict({key: value for key, value in model.state_dict().items() if "block_" not in key})
    return dense


def saved(model: nn.Module, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


@pytest.mark.parametrize("built", ["dense", "masked", "packed", "meta"])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_zero_blocks_become_the_mask(form: Any, built: str, tmp_path: Path) -> None:
    dense = zeroed()
    path = saved(dense, tmp_path / "any.safetensors")
    model = on_meta() if built == "meta" else block_model(built, seed=1)
    assert import_dense(model, path, BLOCKS_OF_4, form=form) is model
    expected = block_model("masked")
    assert torch.equal(sparse_layer(model, "mlp.fc1").mask.kept, sparse_layer(expected, "mlp.fc1").mask.kept)
    assert classes(model) == classes(block_model(form))
    x = torch.randn(3, 40)
    torch.testing.assert_close(model(x), dense(x))
    if form == "packed":
        blast.unpack_(model)
    assert torch.equal(sparse_layer(model, "mlp.fc2").weight, dense.mlp.fc2.weight)


def test_transposed_weights_of_a_sharded_folder(tmp_path: Path) -> None:
    family = FAMILIES["gpt2"]
    model = dense_twin(family, sparse(family))
    model.save_pretrained(tmp_path, max_shard_size="60KB")  # type: ignore[operator]
    loaded = import_dense(family.build(), tmp_path, BLOCKS_OF_4)
    assert sum("Packed" in name for name in classes(loaded).values()) == 4
    with torch.no_grad():
        torch.testing.assert_close(output(loaded, family.inputs(2, 5)), output(model, family.inputs(2, 5)))


def test_layers_with_few_zero_blocks_stay_dense(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dense = zeroed()
    dense.mlp.fc2.weight.data.fill_(1.0)
    dense.mlp.fc2.weight.data[:4, :4] = 0.0
    path = saved(dense, tmp_path / "any.safetensors")
    with caplog.at_level(logging.INFO, "blast_compile"):
        model = import_dense(on_meta(), path, BLOCKS_OF_4)
    assert classes(model) == {"proj": "Linear", "mlp.fc1": "PackedLinear", "mlp.fc2": "Linear"}
    assert "mlp.fc2 stays dense: 0.6 % of its blocks are zero" in caplog.text
    model = import_dense(on_meta(), path, BLOCKS_OF_4, dense_below=0)
    assert classes(model)["mlp.fc2"] == "PackedLinear"


def test_one_dense_weight_at_a_time(tmp_path: Path) -> None:
    def build() -> nn.Sequential:
        return nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(6)))

    model = blast.sparsify_(build(), blast.BlockSparse(block=16, sparsity=0.9, targets="all"))
    for layer in model:
        layer.weight.data.mul_(layer.mask.elements())  # type: ignore[union-attr, operator]
    path = saved(blast.pack_(model, dense_below=1.0), tmp_path / "dense.safetensors")
    with torch.device("meta"):
        empty = build()
    with largest_tensor() as largest:
        import_dense(empty, path, blast.BlockSparse(block=16, targets="all"))
    assert largest.num_bytes == 4 * 128 * 128
    assert all(parameter.numel() < 0.12 * 128 * 128 for parameter in empty.parameters())


def test_what_cannot_be_imported(tmp_path: Path) -> None:
    path = saved(zeroed(), tmp_path / "any.safetensors")
    model = Block()
    before = snapshot(model)
    for config, source, message in [
        (blast.BlockSparse(block=32), path, r"with zero blocks of \(32, 32\) in .*got none; use the block"),
        (BLOCKS_OF_4, tmp_path / "none.safetensors", "expected a safetensors file, got .*none.safetensors: "),
        (BLOCKS_OF_4, saved(nn.Linear(2, 2), tmp_path / "other.safetensors"), "expected layers among 'mlp'"),
        (BLOCKS_OF_4, tmp_path, r"expected one safetensors file or one index of shards in .*, got 2; name the file"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            import_dense(model, source, config)
    (tmp_path / "a.safetensors.index.json").write_text(json.dumps({"weight_map": 3}))
    with pytest.raises(CheckpointError, match="expected an index of shards, got .*AttributeError"):
        import_dense(model, tmp_path, BLOCKS_OF_4)
    model.mlp.register_parameter("more", nn.Parameter(torch.zeros(2)))
    before = snapshot(model)
    with pytest.raises(CheckpointError, match="the file lacks mlp.more of the model"):
        import_dense(model, path, BLOCKS_OF_4)
    assert snapshot(model) == before


class BlockSparseTensor(torch.Tensor):
    """Has the name, the slots and the constructor of torchao's."""

    __module__ = "torchao.sparsity.blocksparse"
    __slots__ = ("bsr_col_indices", "bsr_crow_indices", "bsr_values")

    @staticmethod
    def from_dense(dense: Tensor, blocksize: int) -> Any:
        bsr = dense.detach().to_sparse_bsr(blocksize)
        tensor: Any = torch.Tensor._make_wrapper_subclass(BlockSparseTensor, dense.shape, dtype=dense.dtype)
        tensor.bsr_crow_indices, tensor.bsr_col_indices = bsr.crow_indices(), bsr.col_indices()
        tensor.bsr_values = bsr.values()
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError


def torchao_checkpoint(model: Block, path: Path, patch: pytest.MonkeyPatch, **changes: Tensor) -> Path:
    state: dict[str, Any] = dict(model.state_dict())
    for name in ("mlp.fc1.weight", "mlp.fc2.weight"):
        state[name] = BlockSparseTensor.from_dense(state[name], 4)
    for slot, value in changes.items():
        setattr(state["mlp.fc1.weight"], slot, value)
    with patch.context() as context:
        fake: Any = ModuleType("torchao.sparsity.blocksparse")
        fake.BlockSparseTensor = BlockSparseTensor
        for name in ("torchao", "torchao.sparsity", "torchao.sparsity.blocksparse"):
            context.setitem(sys.modules, name, fake)
        torch.save(state, path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("form", ["masked", "packed"])
def test_block_sparse_tensors_of_torchao(
    form: Any, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = zeroed().to(dtype)
    path = torchao_checkpoint(dense, tmp_path / "model.pt", monkeypatch)
    assert "torchao" not in sys.modules
    with largest_tensor() as largest:
        model = import_torchao(on_meta(), path, form=form)
    assert form == "masked" or largest.num_bytes <= dtype.itemsize * 40 * 40  # that of proj, which is dense
    assert classes(model) == classes(block_model(form))
    if form == "packed":
        blast.unpack_(model)
    for name in ("mlp.fc1", "mlp.fc2"):
        assert sparse_layer(model, name).block == (4, 4)
        assert torch.equal(sparse_layer(model, name).weight, dense.get_parameter(f"{name}.weight"))


def test_torchao_itself(tmp_path: Path) -> None:
    pytest.importorskip("torchao.sparsity.sparse_api", reason="torchao 0.18, the last one with block sparsity")
    from torchao.sparsity.sparse_api import BlockSparseWeightConfig, sparsify_  # type: ignore[import-not-found]

    dense, converted = zeroed(), zeroed()
    sparsify_(converted.mlp.fc1, BlockSparseWeightConfig(blocksize=4))
    torch.save(converted.state_dict(), tmp_path / "model.pt")
    model = blast.unpack_(import_torchao(on_meta(), tmp_path / "model.pt"))
    assert torch.equal(sparse_layer(model, "mlp.fc1").weight, dense.mlp.fc1.weight)


def test_blocks_in_any_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = zeroed()
    tensor = BlockSparseTensor.from_dense(dense.mlp.fc1.weight, 4)
    first = slice(0, int(tensor.bsr_crow_indices[1]))
    columns, values = tensor.bsr_col_indices.clone(), tensor.bsr_values.clone()
    columns[first], values[first] = columns[first].flip(0), values[first].flip(0)
    changes = {"bsr_col_indices": columns, "bsr_values": values}
    path = torchao_checkpoint(dense, tmp_path / "model.pt", monkeypatch, **changes)
    model = blast.unpack_(import_torchao(on_meta(), path))
    assert torch.equal(sparse_layer(model, "mlp.fc1").weight, dense.mlp.fc1.weight)


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.path),)


def test_other_pickles_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Block()
    before = snapshot(model)
    torch.save({"a": Bomb(tmp_path / "exploded")}, tmp_path / "bomb.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps({"a": Bomb(tmp_path / "exploded")}, protocol=2))
    for name in ("bomb.pt", "raw.pt", "none.pt"):
        with pytest.raises(CheckpointError, match="expected a state dict that torch.save wrote, got"):
            import_torchao(model, tmp_path / name)
    assert not (tmp_path / "exploded").exists()
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(CheckpointError, match="expected a state dict of tensors in .*, got a list"):
        import_torchao(model, tmp_path / "list.pt")
    torch.save(model.state_dict(), tmp_path / "dense.pt")
    with pytest.raises(CheckpointError, match="expected block-sparse tensors .*got none; use import_dense"):
        import_torchao(model, tmp_path / "dense.pt")
    changes = {"bsr_col_indices": BlockSparseTensor.from_dense(zeroed().mlp.fc1.weight, 4).bsr_col_indices + 50}
    path = torchao_checkpoint(zeroed(), tmp_path / "damaged.pt", monkeypatch, **changes)
    with pytest.raises(CheckpointError, match="a block-sparse tensor called 'mlp.fc1.weight', got a damaged one"):
        import_torchao(model, path)
    assert snapshot(model) == before


def test_torchao_for_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = torchao_checkpoint(zeroed(), tmp_path / "model.pt", monkeypatch)
    model = nn.Linear(2, 2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CheckpointError, match="expected block-sparse weights of layers of the model, got 'mlp.fc1"):
        import_torchao(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
