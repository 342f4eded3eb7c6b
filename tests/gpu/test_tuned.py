"""Which tuned configs a GPU kernel runs with: those of its own device, for its number of tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blast_compile.base.errors import TargetError
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.kernels.gpu import find
from blast_compile.kernels.gpu.find import Sizes
from blast_compile.kernels.plans.database import Database
from blast_compile.kernels.plans.record import Record
from blast_compile.ops import planning

SPEC = Spec("linear", "bfloat16", "bfloat16", (64, 64), (Epilogue(),), "packed", "cuda:sm_90")
MLP = replace(SPEC, op="mlp", epilogues=(Epilogue("silu"), Epilogue()))
SIZES = Sizes(((4096, 2048),), 0.1, "H100, cuda:sm_90")
MLP_SIZES = replace(SIZES, shapes=((4096, 2048), (2048, 4096)))
TUNED = TritonConfig(16, 32, 64, num_warps=2, num_stages=3)
OTHER = replace(TUNED, num_stages=4)


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLAST_CACHE_DIR", str(tmp_path / "blast_compile"))
    planning.forget()


def keep(spec: Spec = SPEC, config: str = repr(TUNED), sizes: Sizes = SIZES, tokens: int = 16, us: float = 1.0) -> None:
    record = Record(find.problem_of(spec, tokens, sizes), config, "chosen", sizes.device, us, us, us, 2.0)
    Database.default(sizes.device).add(record)
    find.forget()


def config_of(tokens: int = 16, sizes: Sizes = SIZES) -> TritonConfig:
    return find.loaded(SPEC, tokens, sizes).config


def test_a_tuned_config_serves_its_bucket_and_its_device() -> None:
    keep()
    assert config_of(16) == config_of(8) == TUNED
    assert TUNED not in (config_of(4), config_of(32), config_of(1))
    assert config_of(sizes=replace(SIZES, device="A100, cuda:sm_90")) != TUNED
    assert config_of(sizes=replace(SIZES, shapes=((4096, 4096),))) != TUNED


def test_the_nearest_density_counts_where_it_is_known() -> None:
    keep(sizes=replace(SIZES, density=0.5), config=repr(OTHER))
    keep()
    assert config_of() == TUNED
    assert config_of(sizes=replace(SIZES, density=0.4)) == OTHER
    assert config_of(sizes=replace(SIZES, density=None)) in (TUNED, OTHER)


def test_float32_is_rounded_to_tf32_where_that_is_asked_of_torch() -> None:
    spec, rounded = replace(SPEC, dtype="float32", weight_dtype="float32"), replace(TUNED, precision="tf32")
    keep(spec)
    keep(spec, tokens=64, config=repr(rounded))
    assert [find.loaded(spec, tokens, SIZES).config.precision for tokens in (16, 64, 512)] == ["ieee"] * 3
    torch.set_float32_matmul_precision("high")
    try:
        assert [find.loaded(spec, tokens, SIZES).config.precision for tokens in (16, 64, 512)] == ["tf32"] * 3
        assert config_of().precision == "ieee"
    finally:
        torch.set_float32_matmul_precision("highest")
    find.choose(spec, 16, rounded)
    assert find.loaded(spec, 16, SIZES).config == rounded


def test_what_a_process_chose_comes_first() -> None:
    keep()
    find.choose(SPEC, 16, OTHER)
    assert config_of() == OTHER


@pytest.mark.parametrize("config", ["CpuConfig(token_tile=12, vectors=2, panel_bytes=1048576)", "TritonConfig(1, 2)"])
def test_a_record_that_cannot_be_used_counts_as_missing(config: str) -> None:
    usual = config_of()
    keep(config=config)
    assert config_of() == usual


def test_a_whole_mlp_runs_where_it_beat_its_products() -> None:
    assert find.whole(MLP, 16, MLP_SIZES) is None
    keep(MLP, sizes=MLP_SIZES)
    found = find.whole(MLP, 16, MLP_SIZES)
    assert found is not None
    assert found.config == TUNED
    assert find.whole(MLP, 32, MLP_SIZES) is None
    keep(MLP, sizes=MLP_SIZES, us=2.0)
    assert find.whole(MLP, 16, MLP_SIZES) is None


def test_a_whole_mlp_of_many_tokens_is_refused() -> None:
    with pytest.raises(TargetError, match="expected up to 16 tokens for a whole mlp, got 17"):
        find.choose(MLP, 17, TUNED)


def test_the_density_is_that_of_shapes() -> None:
    device, packed = torch.device("cpu"), torch.empty(13, 64, 64)
    assert Sizes.of(((640, 640),), [packed], (64, 64), device).density == 0.1
    assert Sizes.of(((640, 640),), [torch.empty(640, 640)], (64, 64), device).density is None
