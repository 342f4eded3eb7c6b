"""Regional compilation of a model with packed layers of many sizes, in a process of its own: nothing is warm there."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

_SCRIPT = """
import json, sys
import torch, transformers
import blast_compile as blast
from torch._dynamo.utils import counters

NUM_LAYERS, BLOCK = 12, 16
is_sparse, has_dense_beside, delegate = sys.argv[1] == "sparse", sys.argv[2] == "both", sys.argv[3]
options = {"delegate": delegate, "fallback": "error"}
inputs = {"input_ids": torch.arange(16).view(1, 16), "use_cache": False}


def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4, "vocab_size": 96}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=NUM_LAYERS, **sizes)).eval()


def pruned(model):
    for number, layer in enumerate(model.model.layers):
        blast.sparsify_(layer, blast.BlockSparse(block=BLOCK, sparsity=0.4 + 0.04 * number, targets="all"))
    return blast.pack_(model, dense_below=0.0)


def compile_regions(model):
    before = counters["stats"]["unique_graphs"]
    with torch.no_grad():
        expected = model(**inputs).logits
        for layer in model.model.layers:
            layer.compile(backend="blast", options=options)
        torch.testing.assert_close(model(**inputs).logits, expected)
        torch.testing.assert_close(model(**inputs).logits, expected)
    return counters["stats"]["unique_graphs"] - before


found = {}
if is_sparse:
    sparse = pruned(model())
    assert len({layer.mlp.up_proj.weight.shape[0] for layer in sparse.model.layers}) == NUM_LAYERS
    found["sparse"] = compile_regions(sparse)
if has_dense_beside:
    found["dense"] = compile_regions(model())
found["fell back"] = sum(counters["unimplemented"].values())
found["told"] = torch.compiler.config.dynamic_sources.count("weight")
print(json.dumps(found))
"""


def compiled(sparse: str, dense: str, delegate: str = "aot_eager") -> dict[str, Any]:
    """How often each model was compiled, how often Dynamo gave up, and how many weights it was told of."""
    command = [sys.executable, "-c", _SCRIPT, sparse, dense, delegate]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "recompile_limit" not in done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("delegate", ["aot_eager", "inductor"])
def test_twelve_layers_of_twelve_sizes_compile_at_most_three_times(delegate: str) -> None:
    found = compiled("sparse", "only", delegate)
    assert 1 <= found["sparse"] <= 3
    assert found["fell back"] == 0
    assert found["told"] == 7


def test_a_dense_model_beside_it_compiles_as_often_as_without() -> None:
    alone, beside = compiled("none", "both"), compiled("sparse", "both")
    assert alone["dense"] == beside["dense"] == 1
    assert alone["told"] == 0
