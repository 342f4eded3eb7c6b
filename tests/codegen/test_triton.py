"""Generated Triton source: golden files, determinism, and what is refused."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace

import pytest

from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.codegen.triton import TritonConfig, default_config, triton_source
from blast_compile.errors import TargetError

PACKED = Spec(
    "linear",
    "bfloat16",
    "bfloat16",
    (64, 64),
    (Epilogue("gelu_tanh", bias=True, residual=True),),
    "packed",
    "cuda:sm_90",
)
MASKED = Spec("linear", "float32", "float32", (32, 32), (Epilogue(),), "masked", "cuda:sm_90")
GATED_PACKED = Spec(
    "gated_linear", "float16", "float16", (128, 128), (Epilogue("silu", gate=True),), "packed", "hip:gfx942"
)
GATED_MASKED = Spec(
    "gated_linear",
    "bfloat16",
    "float32",
    (256, 16),
    (Epilogue("relu", bias=True, gate=True, gate_bias=True),),
    "masked",
    "cuda:sm_90",
)
SPECS = {"packed": PACKED, "masked": MASKED, "gated_packed": GATED_PACKED, "gated_masked": GATED_MASKED}


@pytest.mark.parametrize("name", list(SPECS))
def test_source(name: str, golden: Callable[[str, str], None]) -> None:
    source = triton_source(SPECS[name], default_config(SPECS[name], num_tokens=512))
    golden(source, ".py")
    assert all(line == line.rstrip() and len(line) <= 120 for line in source.splitlines())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_header_can_be_pasted_back(spec: Spec) -> None:
    config = default_config(spec, num_tokens=512)
    header = ast.get_docstring(ast.parse(triton_source(spec, config)))
    assert header is not None
    start, middle = header.index("Spec("), header.index("TritonConfig(")
    names = {"Spec": Spec, "Epilogue": Epilogue, "TritonConfig": TritonConfig}
    assert eval(header[start:middle], names) == spec  # noqa: S307 - our own text
    assert eval(header[middle:], names) == config  # noqa: S307


def test_equal_specs_give_equal_bytes_and_different_ones_do_not() -> None:
    config = default_config(PACKED, num_tokens=512)
    assert triton_source(PACKED, config) == triton_source(replace(PACKED), replace(config))
    assert triton_source(PACKED, config) != triton_source(PACKED, replace(config, num_stages=2))
    assert triton_source(PACKED, config) != triton_source(replace(PACKED, target="cuda:sm_80"), config)


@pytest.mark.parametrize("block", [(8, 64), (64, 24), (13, 17)])
def test_blocks_without_tensor_core_shape_are_refused(block: tuple[int, int]) -> None:
    spec = replace(PACKED, block=block)
    with pytest.raises(TargetError, match="powers of two from 16 to 256"):
        triton_source(spec, TritonConfig(16, 16, 16, 4, 3))


@pytest.mark.parametrize("op", ["mlp", "gated_mlp"])
def test_other_ops_are_refused(op: str) -> None:
    with pytest.raises(TargetError, match=f"got {op}"):
        triton_source(replace(PACKED, op=op), TritonConfig(16, 16, 16, 4, 3))  # type: ignore[arg-type]


@pytest.mark.parametrize("tiles", [(8, 64, 64), (64, 128, 64), (64, 64, 128), (48, 64, 64)])
def test_tiles_that_do_not_fit_are_refused(tiles: tuple[int, int, int]) -> None:
    with pytest.raises(TargetError, match="no larger than the block"):
        triton_source(PACKED, TritonConfig(*tiles, num_warps=4, num_stages=3))


def test_odd_warps_are_refused() -> None:
    with pytest.raises(TargetError, match="num_warps"):
        triton_source(PACKED, TritonConfig(64, 64, 64, num_warps=3, num_stages=3))


def test_default_tile_grows_with_tokens_and_stays_inside_the_block() -> None:
    assert [default_config(PACKED, num_tokens).tokens for num_tokens in (1, 16, 17, 64, 100, 4097)] == [
        16,
        16,
        32,
        64,
        128,
        128,
    ]
    for spec in SPECS.values():
        for block in ((16, 16), (16, 256), (256, 16), (256, 256)):
            for num_tokens in (1, 64, 512):
                sized = replace(spec, block=block)
                triton_source(sized, default_config(sized, num_tokens))
