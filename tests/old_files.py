"""Writes `tests/fixtures/9a09696`: files of that commit, which every later version must load, and what they compute.

The folder was made by `PYTHONPATH=<a checkout of 9a09696> python tests/old_files.py tests/fixtures/9a09696`; never
write it anew with another version. Tests build the same models through the functions here.

    mlp/<form>.pt                   `torch.save` of the state dict; forms: masked, pruned (zeros where dropped), packed
    mlp/<form>/                     `save_model`
    llama/<form>/, gpt2/<form>/     `save_pretrained`; forms: masked, packed
    learning/                       model.pt, optimizer.pt and sparsifier.pt after `SAVED_AT` steps, and
                                    sparsifier.safetensors as `SparsifierCallback` writes it
    expected.safetensors            "<case>/output" for `tokens()` or `features()`, bool "<case>/kept/<layer>" [R, C];
                                    of "learning/later" after `NUM_STEPS`
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.layers.layer import SparseLayer
from blast_compile.learning import Cubic, PruneAndGrow, Sparsifier, state_file

FOLDER = Path(__file__).parent / "fixtures" / "9a09696"
MLP_FORMS = ("masked", "pruned", "packed")
FORMS = ("masked", "packed")
FAMILIES = ("llama", "gpt2")
SAVED_AT, NUM_STEPS = 7, 15
_COMMON: dict[str, Any] = {"vocab_size": 32, "initializer_range": 0.2, "bos_token_id": 0, "eos_token_id": 0}
_LLAMA = {
    **_COMMON,
    "hidden_size": 16,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
_GPT2 = {**_COMMON, "n_embd": 16, "n_inner": 40, "n_layer": 2, "n_head": 2, "n_positions": 16}


def dense_mlp() -> nn.Sequential:
    """Ragged in blocks of (8, 4); so many of them are kept below that packed layers hold spare ones."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(28, 68), nn.ReLU(), nn.Linear(68, 28, bias=False))


def sparse_mlp(form: str) -> nn.Sequential:
    """The model of `mlp/`."""
    config, model = blast.BlockSparse(block=(8, 4), sparsity=0.13, targets="all"), dense_mlp()
    if form == "pruned":
        blast.prune_(model, config, method="magnitude")
        return model
    blast.sparsify_(model, config)
    return blast.pack_(model, dense_below=0) if form == "packed" else model


def dense_family(family: str) -> Any:
    """A tiny model of transformers with a head, in eval mode."""
    torch.manual_seed(0)
    if family == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_LLAMA)).eval()  # type: ignore[no-untyped-call]
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**_GPT2)).eval()  # type: ignore[no-untyped-call]


def sparse_family(family: str, form: str) -> Any:
    """The model of `llama/` or `gpt2/`."""
    model = blast.sparsify_(dense_family(family), blast.BlockSparse(block=8, sparsity=0.5))
    return blast.pack_(model, dense_below=0) if form == "packed" else model


def learner() -> tuple[nn.Sequential, torch.optim.Adam, Sparsifier]:
    """Model, optimizer and sparsifier of `learning/` before their first step."""
    model = dense_mlp()
    layers = blast.BlockSparse(block=4, targets="all")
    config = PruneAndGrow(Cubic(final=0.75, end=12), layers, interval=3, score="movement")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return model, optimizer, Sparsifier(model, config, optimizer)


def learn_(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier, steps: range) -> None:
    """Trains over `steps`, whose batches depend on their numbers alone."""
    for step in steps:
        x = torch.randn(16, 28, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) - x.flip(1)).square().mean().backward()
        optimizer.step()
        sparsifier.step()


def features() -> Tensor:
    """The input of models in `mlp/` and `learning/`, `[5, 28]`."""
    return torch.sin(torch.arange(5 * 28.0)).view(5, 28)


def tokens() -> Tensor:
    """The input of models in `llama/` and `gpt2/`, `[2, 7]`."""
    return (torch.arange(14) * 5 % 32).view(2, 7)


def computed(model: nn.Module) -> Tensor:
    """The output of a model of any of the folders for its input."""
    with torch.no_grad():
        y: Tensor = model(features()) if isinstance(model, nn.Sequential) else model(tokens(), use_cache=False).logits
    return y


def _noted(case: str, model: nn.Module) -> dict[str, Tensor]:
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    kept = {f"{case}/kept/{name}": layer.mask.kept.clone() for name, layer in layers.items()}
    return {f"{case}/output": computed(model), **kept}


def write(folder: Path) -> None:
    """Writes everything into a folder that is not there yet."""
    (folder / "learning").mkdir(parents=True)
    expected: dict[str, Tensor] = {}
    for form in MLP_FORMS:
        mlp = sparse_mlp(form)
        blast.save_model(mlp, folder / "mlp" / form)
        torch.save(mlp.state_dict(), folder / "mlp" / f"{form}.pt")
        expected |= _noted(f"mlp/{form}", mlp)
    for family in FAMILIES:
        for form in FORMS:
            model = sparse_family(family, form)
            model.save_pretrained(folder / family / form)
            expected |= _noted(f"{family}/{form}", model)
    learning, optimizer, sparsifier = learner()
    learn_(learning, optimizer, sparsifier, range(SAVED_AT))
    for name, part in (("model", learning), ("optimizer", optimizer), ("sparsifier", sparsifier)):
        torch.save(part.state_dict(), folder / "learning" / f"{name}.pt")
    state_file.write(folder / "learning" / "sparsifier.safetensors", sparsifier.state_dict())
    expected |= _noted("learning", learning)
    learn_(learning, optimizer, sparsifier, range(SAVED_AT, NUM_STEPS))
    expected |= _noted("learning/later", learning)
    save_file(expected, folder / "expected.safetensors")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
