"""The demonstration on a tiny model: its figures hold together, and ours agrees with masked-dense eager."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from blast_compile import demo
from blast_compile.demo import text
from blast_compile.demo.agreement import Agreement
from blast_compile.demo.measure import BACKENDS, EAGER, INDUCTOR, NUM_STEPS, OURS, Figures, Speed
from blast_compile.demo.model import Memory, Size, make
from blast_compile.tuning.timing import Timing

TINY = Size(
    hidden=128, intermediate=256, layers=1, heads=2, kv_heads=1, prompt=24, windows=2, decoded=3, rounds=2, seconds=0.0
)


@pytest.fixture
def _without_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inductor needs half a minute for four graphs."""
    monkeypatch.setitem(BACKENDS, INDUCTOR, {"backend": "aot_eager"})
    monkeypatch.setitem(BACKENDS, OURS, {"backend": "blast", "options": {"delegate": "aot_eager"}})


@pytest.mark.usefixtures("_without_inductor")
def test_figures_of_a_tiny_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads_before = torch.get_num_threads()
    figures = demo.run(quick=True, threads=1, json_path=tmp_path / "figures.json", size=TINY)
    assert torch.get_num_threads() == threads_before
    assert figures.threads == 1
    assert dict(figures.explanation.counts) == {"gated_mlp": 1}
    _check_agreement(figures)
    for speeds in (figures.prefill, figures.decode):
        assert set(speeds) == {EAGER, INDUCTOR, OURS}
        assert all(0 < speed.p10 <= speed.median <= speed.p90 for speed in speeds.values())
    assert set(figures.compile_seconds) == {INDUCTOR, OURS}

    plain = json.loads((tmp_path / "figures.json").read_text())
    assert plain["prefill"][OURS]["median"] == figures.prefill[OURS].median
    assert plain["explanation"]["counts"] == {"gated_mlp": 1}
    assert {"blast_compile", "torch"} == set(plain["versions"])
    output = capsys.readouterr().out
    for word in ("nothing was learned", "gated_mlp", "same top-1", "Tokens a second", "smaller by"):
        assert word in " ".join(output.split()), word
    assert output.count(" s\n") >= NUM_STEPS


def _check_agreement(figures: Figures) -> None:
    assert figures.prefill_agreement.num_tokens == 48
    assert figures.decode_agreement.num_tokens == 3
    # Two bfloat16 results differ by the rounding of both: about twice what either differs from float32.
    for agreement in (figures.prefill_agreement, figures.decode_agreement):
        assert agreement.max_difference < 3 * figures.rounding.max_difference < 0.1
    assert figures.prefill_agreement.top1 > 0.9


def test_models_share_their_weights_and_only_the_mlps_shrink() -> None:
    models = make(TINY)
    dense, packed = Memory.of(models.dense), Memory.of(models.packed)
    num_blocks = 3 * (256 // 32) * (128 // 32)
    kept = num_blocks - 3 * round(0.9 * num_blocks / 3)
    offsets = (2 * (256 // 32 + 1) + 128 // 32 + 1 + kept) * 4
    assert dense.mlp_bytes == num_blocks * 32 * 32 * 2
    assert packed.mlp_bytes == kept * 32 * 32 * 2 + offsets
    assert dense.total_bytes - packed.total_bytes == dense.mlp_bytes - packed.mlp_bytes
    name = "model.layers.0.mlp.up_proj.weight"
    original, masked = models.dense.get_parameter(name), models.masked_dense.get_parameter(name)
    assert torch.equal(masked, original * (masked != 0))
    assert (masked != 0).float().mean().item() == pytest.approx(0.1, abs=0.03)


def test_text_is_that_of_the_library() -> None:
    pieces = text.windows(3, 100)
    assert pieces.shape == (3, 100)
    assert pieces.dtype == torch.int64
    assert bytes(pieces.flatten().tolist()).isascii()
    assert b"\n" in bytes(pieces.flatten().tolist())


def test_agreement_counts_differences() -> None:
    truth = torch.tensor([[0.0, 4.0], [1.0, 0.0]])
    assert Agreement.between(truth, truth) == Agreement(0.0, 1.0, 2)
    off = Agreement.between(torch.tensor([[0.0, 4.0], [1.0, 2.0]]), truth)
    assert off == Agreement(0.5, 0.5, 2)


def test_speed_is_tokens_over_time() -> None:
    speed = Speed.of(Timing(median_us=2e6, p10_us=1e6, p90_us=4e6, num_rounds=3), num_tokens=8)
    assert math.isclose(speed.median, 4.0)
    assert (speed.p10, speed.p90) == (2.0, 8.0)
