"""The demonstration on tiny models: its figures hold together, and ours agrees with masked-dense eager."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from blast_compile.commands.demo import corpus, text
from blast_compile.commands.demo.agreement import Agreement
from blast_compile.commands.demo.measure import BACKENDS, EAGER, INDUCTOR, OURS, Figures, Speed
from blast_compile.commands.demo.model import Memory, Models, Size, llama, make
from blast_compile.commands.demo.run import Plan, run
from blast_compile.commands.demo.training import Recipe
from blast_compile.layers.layer import MaskedLayer
from blast_compile.layers.pack import unpack_
from blast_compile.layers.sparsify import BlockSparse, sparsify_
from blast_compile.tuning.timing import Timing

TINY = Size(
    hidden=128, intermediate=256, layers=1, heads=2, kv_heads=1, prompt=24, windows=2, decoded=3, rounds=2, seconds=0.0
)
SMALL = Size(
    hidden=64, intermediate=128, layers=1, heads=1, kv_heads=1, prompt=24, windows=2, decoded=3, rounds=2, seconds=0.0,
    vocabulary=300, tied=True,
)  # fmt: skip
PLAN = Plan(SMALL, Recipe(steps=12, lr=1e-2, batch=4, length=16, warmup=2), interval=2, large=TINY)
FILES = {f"part{number}.py": f"def f{number}(x):\n    return x + {number}\n" * 20 for number in range(60)}


@pytest.fixture
def _without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor needs half a minute for four graphs, and the library some seconds."""
    monkeypatch.setitem(BACKENDS, INDUCTOR, {"backend": "aot_eager"})
    monkeypatch.setitem(BACKENDS, OURS, {"backend": "blast", "options": {"delegate": "aot_eager"}})
    monkeypatch.setattr(corpus, "library_files", lambda: iter(FILES.items()))


@pytest.mark.usefixtures("_without_inductor")
def test_tiny_models_learn_and_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads_before = torch.get_num_threads()
    path, pictures = tmp_path / "figures.json", tmp_path / "pictures"
    found = run(quick=True, threads=1, json_path=path, pictures=pictures, plan=PLAN)
    assert torch.get_num_threads() == threads_before
    for trained in (found.dense, found.sparse):
        assert len(trained.losses) == 12
        assert trained.perplexity < 300 / 2
    layers = [layer for layer in found.sparse.model.modules() if isinstance(layer, MaskedLayer)]
    assert [layer.mask.nnz for layer in layers] == [1, 1, 1]  # of 8 blocks each
    assert found.sparse.sparsity[-1][1] == pytest.approx(0.9)
    assert found.trained.written is not None
    assert found.trained.written.shape == (3,)

    assert found.large is not None
    for figures in (found.trained, found.large):
        _check_figures(figures)
    assert found.large.prefill_agreement.top1 > 0.9

    plain = json.loads(path.read_text())
    assert plain["large"]["prefill"][OURS]["median"] == found.large.prefill[OURS].median
    assert plain["trained"]["explanation"]["counts"] == {"gated_mlp": 1}
    assert plain["sparse"]["perplexity"] == found.sparse.perplexity
    assert (plain["threads"], set(plain["versions"])) == (1, {"blast_compile", "torch"})
    assert {path.name for path in pictures.iterdir()} == {"masks.png", "masks-over-training.png", "training.png"}
    output = " ".join(capsys.readouterr().out.split())
    for word in ("held-out perplexity", "gated_mlp", "same top-1", "Tokens a second", "smaller by", "return x +"):
        assert word in output, word


def _check_figures(figures: Figures) -> None:
    assert dict(figures.explanation.counts) == {"gated_mlp": 1}
    assert figures.prefill_agreement.num_tokens == 48
    assert figures.decode_agreement.num_tokens == 3
    # Two bfloat16 results differ by the rounding of both: about twice what either differs from float32.
    for agreement in (figures.prefill_agreement, figures.decode_agreement):
        assert agreement.max_difference < 3 * figures.rounding.max_difference < 0.1
    for speeds in (figures.prefill, figures.decode):
        assert set(speeds) == {EAGER, INDUCTOR, OURS}
        assert all(0 < speed.p10 <= speed.median <= speed.p90 for speed in speeds.values())
    assert set(figures.compile_seconds) == {INDUCTOR, OURS}


def test_models_share_their_weights_and_only_the_mlps_shrink() -> None:
    models = make(TINY)
    dense, packed = Memory.of(models.dense), Memory.of(models.packed)
    num_blocks = 3 * (256 // 32) * (128 // 32)
    kept = num_blocks - 3 * round(0.9 * num_blocks / 3)
    indices = (2 * (2 * 256 // 32 + 1) + 2 * 128 // 32 + 1 + kept) * 4
    assert dense.mlp_bytes == num_blocks * 32 * 32 * 2
    assert packed.mlp_bytes == kept * 32 * 32 * 2 + indices
    assert dense.total_bytes - packed.total_bytes == dense.mlp_bytes - packed.mlp_bytes
    name = "model.layers.0.mlp.up_proj.weight"
    original, masked = models.dense.get_parameter(name), models.masked_dense.get_parameter(name)
    assert torch.equal(masked, original * (masked != 0))
    assert (masked != 0).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_trained_models_become_three_in_bfloat16() -> None:
    dense, masked = llama(SMALL, torch.float32, seed=1), llama(SMALL, torch.float32, seed=2)
    sparsify_(masked, BlockSparse(block=32, sparsity=0.5))
    models = Models.of_trained(dense, masked)
    name = "model.layers.0.mlp.up_proj.weight"
    layer = masked.get_submodule(name.removesuffix(".weight"))
    assert isinstance(layer, MaskedLayer)
    expected = (layer.weight * layer.mask.elements()).bfloat16()
    assert torch.equal(models.masked_dense.get_parameter(name), expected)
    assert torch.equal(unpack_(models.packed).get_parameter(name), expected)
    assert torch.equal(models.dense.get_parameter(name), dense.get_parameter(name).bfloat16())
    assert dense.get_parameter(name).dtype == masked.get_parameter(name).dtype == torch.float32


def test_prompts_follow_one_another() -> None:
    prompts, tail = text.prompts(torch.arange(100), TINY)
    assert prompts.tolist() == [list(range(24)), list(range(27, 51))]
    assert tail.tolist() == [24, 25, 26]
    spelt = text.bytes_of_python(300)
    assert (spelt.shape, spelt.dtype) == ((300,), torch.int64)
    assert b"\n" in bytes(spelt.tolist())


def test_agreement_counts_differences() -> None:
    truth = torch.tensor([[0.0, 4.0], [1.0, 0.0]])
    assert Agreement.between(truth, truth) == Agreement(0.0, 1.0, 2)
    off = Agreement.between(torch.tensor([[0.0, 4.0], [1.0, 2.0]]), truth)
    assert off == Agreement(0.5, 0.5, 2)


def test_speed_is_tokens_over_time() -> None:
    speed = Speed.of(Timing(median_us=2e6, p10_us=1e6, p90_us=4e6, num_rounds=3), num_tokens=8)
    assert math.isclose(speed.median, 4.0)
    assert (speed.p10, speed.p90) == (2.0, 8.0)
