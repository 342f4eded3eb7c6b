"""The examples of the documentation run as they are written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.processor import cpu_target
from tests.models import Mlp, classes

ROOT = Path(__file__).parents[1]
pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
]


def examples(page: str) -> list[str]:
    """The indented blocks of a page that are Python: what stands between two lines of prose."""
    blocks = re.findall(r"(?:^    .*\n(?:\s*\n)*)+", (ROOT / page).read_text(), re.MULTILINE)
    texts = ["\n".join(line[4:] for line in block.splitlines()) for block in blocks]
    return [text for text in texts if re.match(r"(import |from |run |blast\.|model\.)", text)]


class Output(NamedTuple):
    """What models of transformers return, as far as the examples go."""

    loss: Tensor


class Learner(nn.Module):
    """A model whose output has a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = Mlp(64, 96)

    def forward(self, x: Tensor) -> Output:
        return Output((self.mlp(x) - x).square().mean())


def small() -> dict[str, Any]:
    """An MLP and inputs for it."""
    torch.manual_seed(0)
    model = Mlp(64, 96).eval()
    x = torch.randn(200, 64)
    return {"model": model, "x": x, "batches": [x, x + 1], "optimizer": torch.optim.SGD(model.parameters(), 0.1)}


def sparse() -> dict[str, Any]:
    names = small()
    blast.pack_(blast.sparsify_(names["model"], blast.BlockSparse(block=32, sparsity=0.5)))
    return names | {"blast": blast, "torch": torch, "example_inputs": (names["x"],), "example_input": names["x"]}


def run(page: str, number: int, names: dict[str, Any], **edits: str) -> dict[str, Any]:
    """Runs an example with these names in place; `edits` fill in what it leaves to the reader."""
    text = examples(page)[number]
    for gap, filling in edits.items():
        text = text.replace({"dots": "..."}[gap], filling)
    exec(compile(text, page, "exec"), names)
    return names


@pytest.mark.slow
def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("README.md", 0, small())
    torch.testing.assert_close(names["y"], names["model"](names["x"]))
    assert "1 mlp" in capsys.readouterr().out
    fresh = small()
    blast.load_model(fresh["model"], "folder")
    assert classes(fresh["model"]) == classes(names["model"])
    step = "model(x).sum().backward(); optimizer.step()"
    run("README.md", 1, small() | {"blast": blast, "config": names["config"]}, dots=step)


def test_attention(capsys: pytest.CaptureFixture[str]) -> None:
    run("docs/attention.md", 0, {})
    told = capsys.readouterr().out
    if cpu_target().startswith("cpu:avx512"):
        assert "self_attn: attention to keys up to its own, keys that are no padding, 4 heads of 16" in told
    assert "self_attn" in told


def test_pruning(capsys: pytest.CaptureFixture[str]) -> None:
    names = run("docs/pruning.md", 0, small())
    assert set(classes(names["model"]).values()) == {"PackedLinear"}
    assert "fc2" in capsys.readouterr().out


@pytest.mark.slow
def test_training() -> None:
    model = Learner()
    run("docs/training.md", 0, {"model": model, "batches": [torch.randn(8, 64)] * 3})
    assert set(classes(model).values()) == {"Linear"}, "three steps of 5000 prune nearly nothing, so dense is faster"


def test_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("docs/files.md", 0, sparse())


def llama() -> Any:
    from tests.families import FAMILIES

    return blast.sparsify_(FAMILIES["llama"].build(), blast.BlockSparse(block=16, sparsity=0.5))


@pytest.mark.slow
def test_files_of_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, Trainer

    from blast_compile.learning import Cubic, PruneAndGrow

    monkeypatch.chdir(tmp_path)
    model = blast.pack_(llama())
    loaded = run("docs/files.md", 1, {"model": model, "AutoModelForCausalLM": AutoModelForCausalLM})["model"]
    assert classes(loaded) == classes(model)
    config = PruneAndGrow(Cubic(0.9, end=10), blast.BlockSparse(block=16))
    names = {"model": llama(), "config": config, "Trainer": Trainer, "Sparsifier": blast.Sparsifier}
    run("docs/files.md", 2, names, dots="train_dataset=[]")


@pytest.mark.slow
def test_files_of_diffusers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import diffusers

    monkeypatch.chdir(tmp_path)
    sizes = {"num_attention_heads": 4, "attention_head_dim": 16, "in_channels": 4, "num_layers": 1, "sample_size": 8}
    kind: Any = diffusers.DiTTransformer2DModel
    model = kind(**sizes, patch_size=2, num_embeds_ada_norm=10).eval()
    blast.sparsify_(model, blast.BlockSparse(block=8, sparsity=0.5))
    names = run("docs/files.md", 3, {"model": model, "DiTTransformer2DModel": kind})
    assert classes(names["model"]) == classes(model)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks
def test_files_of_peft() -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    names = {"model": blast.pack_(llama()), "LoraConfig": LoraConfig, "get_peft_model": get_peft_model}
    names = run("docs/files.md", 4, names, dots="target_modules=['up_proj'], r=2")
    assert isinstance(names["model"], PeftModel)


def test_files_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dense = small()["model"]
    for layer in (dense.fc1, dense.fc2):
        layer.weight.data[:, :32] = 0.0
    save_file(dense.state_dict(), "model.safetensors")
    text = examples("docs/files.md")[5]
    assert "import_torchao(model" in text
    text = re.sub("import_torchao.model.*", "", text)  # its file needs torchao; tests/checkpoint has one
    names = small() | {"blast": blast}
    exec(text, names)
    assert set(classes(names["model"]).values()) == {"PackedLinear"}


@pytest.mark.slow
def test_runs_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = sparse()
    run("docs/runs-with.md", 0, names)
    served = run("docs/runs-with.md", 1, {"torch": torch})["run"]
    torch.testing.assert_close(served(names["x"]), names["model"](names["x"]))


@pytest.mark.slow
def test_tuning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path))
    names = run("docs/tuning.md", 0, sparse())
    assert names["report"].tuned
    run("docs/tuning.md", 1, names)


@pytest.mark.slow
def test_deployment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    monkeypatch.chdir(tmp_path)
    names = sparse()
    run("docs/deployment.md", 0, names)
    run("docs/deployment.md", 1, names)
    torch.testing.assert_close(names["run"](names["x"]), names["model"](names["x"]))
    run("docs/deployment.md", 2, names)
    assert (tmp_path / "served" / "model.pt2").exists()
