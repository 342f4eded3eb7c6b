"""The configs that may be tried: each is possible, the untuned one comes first, and every variant is among them."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from blast_compile.base.errors import TargetError
from blast_compile.codegen.spec import Dtype, Epilogue, Op, Spec
from blast_compile.codegen.triton.config import default_config
from blast_compile.codegen.triton.fit import fit
from blast_compile.codegen.triton.generate import triton_source
from blast_compile.codegen.triton.space import configs, shared_bytes, shared_limit

LINEAR = Spec("linear", "bfloat16", "bfloat16", (64, 64), (Epilogue(),), "packed", "cuda:sm_90")
SHARED_KB = {"cuda:sm_80": 163, "cuda:sm_90": 227, "cuda:sm_120": 99, "hip:gfx942": 64}
OPS: tuple[Op, ...] = ("linear", "gated_linear", "input_grad", "weight_grad")


def spec_of(op: Op, target: str, edge: int) -> Spec:
    epilogues = () if op in ("input_grad", "weight_grad") else (Epilogue("silu", gate=op == "gated_linear"),)
    return replace(LINEAR, op=op, target=target, block=(edge, edge), epilogues=epilogues)


@pytest.mark.parametrize("target", list(SHARED_KB))
@pytest.mark.parametrize("op", OPS)
def test_each_is_possible_and_comes_once(op: Op, target: str) -> None:
    for edge in (16, 64, 256):
        for num_tokens in (1, 16, 512):
            spec = spec_of(op, target, edge)
            found = list(configs(spec, num_tokens))
            assert found[0] == default_config(spec, num_tokens)
            assert 4 <= len(found) == len(set(found)) <= 256
            assert max(shared_bytes(spec, config) for config in found) <= SHARED_KB[target] * 1024
            for config in found[:: max(1, len(found) // 5)]:
                triton_source(spec, config)


@pytest.mark.parametrize(
    ("num_tokens", "names"),
    [
        (1, ("is_vector", "is_swapped", "splits")),
        (16, ("is_swapped", "splits")),
        (4096, ("is_persistent", "is_ordered", "uses_descriptors", "group")),
    ],
)
def test_variants_are_among_them(num_tokens: int, names: tuple[str, ...]) -> None:
    for name in names:
        assert len({getattr(config, name) for config in configs(LINEAR, num_tokens)}) > 1, name


def test_descriptors_wait_for_a_device_and_rows_that_have_them() -> None:
    assert not [c for c in configs(LINEAR, 512, has_aligned_rows=False) if c.uses_descriptors]
    for target in ("cuda:sm_80", "hip:gfx942"):
        assert not [c for c in configs(replace(LINEAR, target=target), 512) if c.uses_descriptors]


def test_a_block_without_kernels_has_no_configs() -> None:
    with pytest.raises(TargetError, match="powers of two"):
        next(configs(replace(LINEAR, block=(24, 64)), 16))


@pytest.mark.parametrize("target", [*SHARED_KB, "cuda:sm_86", "cuda:sm_100"])
def test_untuned_and_fitted_configs_fit_on_every_generation(target: str) -> None:
    """By arithmetic, for whatever blocks and dtypes; `make gpu-static` compiles some of them."""
    pairs: list[tuple[Dtype, Dtype]] = [("bfloat16", "bfloat16"), ("float32", "float32"), ("bfloat16", "float32")]
    blocks = itertools.product((16, 64, 256), (16, 64, 256))
    for op, block, tokens in itertools.product(OPS, blocks, (1, 16, 8192)):
        for dtype, weight_dtype in pairs:
            spec = replace(spec_of(op, target, 64), block=block, dtype=dtype, weight_dtype=weight_dtype)
            for config in (default_config(spec, tokens), fit(spec, default_config(spec, tokens), tokens, (8, 8))):
                triton_source(spec, config)
                assert shared_bytes(spec, config) <= shared_limit(spec), (spec, config)
