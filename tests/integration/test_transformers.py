"""`save_pretrained` and `from_pretrained`: sparse layers come back bit for bit, dense ones of packed layers never."""

from __future__ import annotations

import json
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

import blast_compile as blast
from blast_compile.base.errors import CheckpointError, OptionsError
from blast_compile.layers.integrations.transformers import BlastConfig
from blast_compile.layers.layer import SparseLayer
from blast_compile.masks import layout
from tests.checkpoint.saved import assert_same_state, largest_tensor
from tests.families import FAMILIES, MORE_FAMILIES, OTHER_FAMILIES, output, sparse
from tests.models import classes

ALL_FAMILIES = FAMILIES | MORE_FAMILIES | OTHER_FAMILIES
SPARSE = blast.BlockSparse(block=16, sparsity=0.5)  # as tests of families


def sparse_model(family: str, form: str) -> Any:
    return cast(PreTrainedModel, sparse(ALL_FAMILIES[family], form))


def load(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **options)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("family", ALL_FAMILIES)
def test_outputs_are_equal_to_the_bit(family: str, form: str, tmp_path: Path) -> None:
    model = sparse_model(family, form)
    load = type(model).from_pretrained
    model.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert not list(tmp_path.glob("*.bin"))
    loaded = load(tmp_path)
    assert_same_state(loaded, model)
    assert classes(loaded) == classes(model)
    x = ALL_FAMILIES[family].inputs(2, 5)
    with torch.no_grad():
        assert torch.equal(output(loaded, x), output(model, x))
    loaded.save_pretrained(tmp_path / "again", max_shard_size="60KB")
    assert_same_state(load(tmp_path / "again"), model)


def test_values_keep_their_dtype_or_take_the_one_asked_for(tmp_path: Path) -> None:
    model = sparse_model("llama", "packed").to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert_same_state(load(tmp_path), model)
    assert_same_state(load(tmp_path, dtype=torch.float32), model.to(torch.float32))
    loaded = load(tmp_path)
    assert loaded.float().half().dtype == torch.float16  # transformers refuses these casts of quantized models


def test_the_config_describes_the_layers(tmp_path: Path) -> None:
    model = sparse_model("llama", "packed")
    model.save_pretrained(tmp_path)
    described = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert described["quant_method"] == "blast"
    name = "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(name)
    expected = {"form": "packed", "block": list(layer.block), "num_blocks": layer.mask.nnz, "num_dead_blocks": 0}
    stored = load_file(tmp_path / "model.safetensors")
    expected["index_crc32"] = zlib.crc32(stored[f"{name}.block_index"].numpy().tobytes())
    assert described["layers"][name] == expected
    assert stored[f"{name}.weight"].shape[0] == layer.mask.nnz
    assert len(described["layers"]) == 6


def test_a_model_that_is_dense_again_is_saved_as_one(tmp_path: Path) -> None:
    model = sparse_model("llama", "masked")
    model.save_pretrained(tmp_path)
    blast.pack_(model, dense_below=1.0)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert_same_state(load(tmp_path), model)


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_a_base_model_and_one_with_a_head_load_each_other(form: str, tmp_path: Path) -> None:
    model = sparse_model("llama", form)
    model.save_pretrained(tmp_path / "headed")
    base = AutoModel.from_pretrained(tmp_path / "headed")
    assert_same_state(base, model.model)
    model.model.save_pretrained(tmp_path / "base")
    headed = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "base")
    assert_same_state(headed.model, model.model)


def test_a_file_takes_its_kept_weights_and_index(tmp_path: Path) -> None:
    """No spare blocks of size classes; names and shapes of the header are what else there is, within 2 %."""
    settings = {**FAMILIES["llama"].settings, "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 1}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(transformers.LlamaConfig(**settings))  # type: ignore[no-untyped-call]
    blast.pack_(blast.sparsify_(model, blast.BlockSparse(block=32, sparsity=1 - 170 / 512)))
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    assert sum(layer.weight.shape[0] for layer in layers.values()) > 1.02 * 170 * len(layers)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    for name, layer in layers.items():
        num_rows = layer.shape[0] // 32
        assert stored[f"{name}.weight"].nbytes == 170 * 32 * 32 * 4
        assert stored[f"{name}.block_index"].nbytes == (2 * num_rows + 1 + 170) * 4
    on_disk = (tmp_path / "model.safetensors").stat().st_size
    assert on_disk <= 1.02 * sum(tensor.nbytes for tensor in stored.values())


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_dense_weights_of_packed_layers_never_exist(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")  # in this thread, where tensors are watched
    wide = {"intermediate_size": 2048} if family == "llama" else {"n_inner": 2048}
    config = getattr(transformers, FAMILIES[family].config)(**{**FAMILIES[family].settings, **wide})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    blast.pack_(blast.sparsify_(model, blast.BlockSparse(block=16, sparsity=0.9)))
    model.save_pretrained(tmp_path)
    with largest_tensor() as largest:
        loaded = load(tmp_path)
    assert largest.num_bytes < 0.2 * 4 * 64 * 2048
    assert_same_state(loaded, model)


def test_packed_and_masked_models_train(tmp_path: Path) -> None:
    for form in ("masked", "packed"):
        sparse_model("llama", form).save_pretrained(tmp_path / form)
        model = load(tmp_path / form)
        tokens = FAMILIES["llama"].inputs(2, 5)["input_ids"]
        model(input_ids=tokens, labels=tokens).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())


def edit_config(edit: Callable[[Any], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        edit(content["quantization_config"])
        (folder / "config.json").write_text(json.dumps(content))

    return damage


def edit_tensors(edit: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


UP = "model.layers.0.mlp.up_proj"


def another_order(tensors: dict[str, Tensor]) -> Tensor:
    """The index of another layer of the same shape and number of blocks: sound, as what memory holds may be."""
    return tensors[f"{UP}.block_index".replace("up_proj", "gate_proj")].clone()


def empty_index(tensors: dict[str, Tensor]) -> Tensor:
    """A sound index whose blocks are all spare."""
    num_blocks, grid = tensors[f"{UP}.weight"].shape[0], (24, 16)  # [96, 64] in blocks of 4
    return layout.packed_index(torch.zeros(grid, dtype=torch.bool), num_blocks)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (edit_config(lambda c: c.update(version=3)), "described in version 2, got version 3; upgrade blast_compile"),
        (edit_config(lambda c: c["layers"][UP].pop("block")), f"a description of the sparse layer '{UP}', got .*block"),
        (edit_config(lambda c: c["layers"][UP].update(block=[0, 4])), "expected a description of .*from 1 to 256"),
        (
            edit_config(lambda c: c.update(layers={"elsewhere.fc": c["layers"][UP]})),
            "expected a model with layers such as 'elsewhere.fc', .*got a LlamaForCausalLM that has none of them",
        ),
        (
            edit_config(lambda c: c["layers"].update({"model.norm": c["layers"][UP]})),
            "expected a linear layer called 'model.norm', got LlamaRMSNorm",
        ),
        (
            edit_tensors(lambda t: t[f"{UP}.block_index"][-1:].fill_(77)),
            f"the mask index of '{UP}', got one that cannot",
        ),
        (
            edit_tensors(lambda t: t.update({f"{UP}.block_index": empty_index(t)})),
            rf"expected \d+ blocks in the index of '{UP}', got 0",
        ),
        (edit_tensors(lambda t: t.update({f"{UP}.block_index": another_order(t)})), f"index of '{UP}' with the CRC-32"),
    ],
)
def test_damaged_models_are_refused(damage: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    sparse_model("llama", "packed").save_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        load(tmp_path)


def test_dense_models_are_made_sparse_elsewhere(tmp_path: Path) -> None:
    FAMILIES["llama"].build().save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(
        OptionsError, match="got a quantization_config for a dense one; leave it out, and call sparsify_"
    ):
        load(tmp_path, quantization_config=BlastConfig())


def test_device_maps(tmp_path: Path) -> None:
    model = sparse_model("llama", "packed")
    model.save_pretrained(tmp_path)
    assert_same_state(load(tmp_path, device_map="cpu"), model)
    assert_same_state(load(tmp_path, device_map="auto", max_memory={"cpu": "1GB"}), model)


@pytest.fixture
def filled_memory() -> Iterator[None]:
    """New tensors hold no values of freed ones, which may be the very index that is missing."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("filled_memory")
def test_a_missing_index_is_refused(tmp_path: Path) -> None:
    sparse_model("llama", "packed").save_pretrained(tmp_path)
    edit_tensors(lambda tensors: tensors.pop(f"{UP}.block_index"))(tmp_path)
    with pytest.raises(CheckpointError, match=UP):
        load(tmp_path)


def test_a_new_process_needs_one_import(tmp_path: Path) -> None:
    model = sparse_model("gpt2", "packed")
    model.save_pretrained(tmp_path)
    x = FAMILIES["gpt2"].inputs(1, 3)
    with torch.no_grad():
        torch.save(model(**x)[0], tmp_path / "expected.pt")
    program = (
        "import sys, torch, blast_compile.layers.integrations.transformers\n"
        "from transformers import AutoModelForCausalLM\n"
        f"model = AutoModelForCausalLM.from_pretrained({str(tmp_path)!r})\n"
        f"y = model(input_ids=torch.tensor({x['input_ids'].tolist()}))[0]\n"
        f"assert torch.equal(y, torch.load({str(tmp_path / 'expected.pt')!r})), y"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)


def test_other_modules_hold_models_of_transformers(tmp_path: Path) -> None:
    wrapper = nn.ModuleDict({"inner": FAMILIES["llama"].build()})
    blast.sparsify_(wrapper, SPARSE)
    inner = cast(Any, wrapper["inner"])
    inner.save_pretrained(tmp_path)
    assert_same_state(load(tmp_path), inner)
    other = FAMILIES["llama"].build()
    blast.save_model(inner, tmp_path / "plain")
    cast(Any, blast.load_model(other, tmp_path / "plain")).save_pretrained(tmp_path / "by_load_model")
    assert_same_state(load(tmp_path / "by_load_model"), inner)
