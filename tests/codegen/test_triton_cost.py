"""Costs of configs by counting: what must be cheaper than what, on an H100."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.gpu_static.variants import spec_of
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.config import TritonConfig, default_config
from blast_compile.codegen.triton.cost import Layer, by_cost, cycles
from blast_compile.codegen.triton.fit import fit
from blast_compile.codegen.triton.space import configs

LARGE, SMALL = Layer((112, 32), 0.1), Layer((16, 64), 0.1)


def spec(op: str = "linear", block: int = 128) -> Spec:
    return spec_of(op, "packed", "cuda:sm_90", block, ("bfloat16", "bfloat16"))  # type: ignore[arg-type]


def test_large_tiles_win_where_rows_are_long() -> None:
    """They load less for each product; where few blocks are kept, more programs hide each other's waits instead."""
    tile = TritonConfig(128, 128, 64, num_warps=8, num_stages=3)
    larger = replace(tile, tokens=256)
    gain = {
        density: cycles(spec(), tile, 2048, Layer((112, 32), density))
        / cycles(spec(), larger, 2048, Layer((112, 32), density))
        for density in (0.03, 0.5)
    }
    assert gain[0.5] > 1.2
    assert gain[0.03] < gain[0.5]


def test_a_split_pays_for_its_kernel_in_small_layers_alone() -> None:
    config = default_config(spec(block=64), 1)
    split = replace(config, splits=4)
    assert cycles(spec(block=64), config, 1, Layer((224, 64), 0.1)) < cycles(
        spec(block=64), split, 1, Layer((224, 64), 0.1)
    )
    long_rows = Layer((8, 1024), 0.5)
    assert cycles(spec(block=64), split, 1, long_rows) < cycles(spec(block=64), config, 1, long_rows)


def test_more_kept_blocks_and_tokens_cost_more() -> None:
    config = default_config(spec(), 2048)
    assert cycles(spec(), config, 2048, LARGE) < cycles(spec(), config, 2048, replace(LARGE, density=0.2))
    assert cycles(spec(), config, 2048, LARGE) < cycles(spec(), config, 8192, LARGE)
    assert cycles(spec(), config, 2048, LARGE) < cycles(spec("gated_linear"), config, 2048, LARGE)


@pytest.mark.parametrize("tokens", [1, 16, 128, 2048, 8192])
@pytest.mark.parametrize("op", ["linear", "gated_linear"])
def test_the_untuned_config_is_among_the_cheap_ones(op: str, tokens: int) -> None:
    """Fitted to the layer, it costs at most half as much again as the cheapest."""
    for block in (64, 128):
        for layer in (Layer((14336 // block, 4096 // block), 0.1), Layer((4096 // block, 14336 // block), 0.1)):
            of = spec(op, block)
            untuned = fit(of, default_config(of, tokens), tokens, layer.blocks)
            cheapest = by_cost(of, configs(of, tokens), tokens, layer)[0]
            assert cycles(of, untuned, tokens, layer) <= 1.5 * cycles(of, cheapest, tokens, layer)
