"""Generated Triton source: golden files, determinism, and what is refused."""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import replace

import pytest

from blast_compile.base.errors import TargetError
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.codegen.triton.config import TritonConfig, default_config
from blast_compile.codegen.triton.generate import triton_source

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
BEFORE = Epilogue("silu", gate=True)
INPUT_GRAD = replace(PACKED, op="input_grad", epilogues=(BEFORE,), block=(64, 128))
WEIGHT_GRAD = replace(PACKED, op="weight_grad", epilogues=())
FEW = TritonConfig(16, 64, 64, num_warps=4, num_stages=4)
MANY = TritonConfig(128, 64, 64, num_warps=8, num_stages=4)
SOURCES = {name: (spec, default_config(spec, 512)) for name, spec in SPECS.items()} | {
    "vector": (PACKED, replace(FEW, tokens=1)),
    "split_swapped": (replace(GATED_PACKED, target="cuda:sm_90"), replace(FEW, splits=4, is_swapped=True)),
    "persistent_descriptors": (PACKED, replace(MANY, is_persistent=True, is_ordered=True, uses_descriptors=True)),
    "small_blocks": (replace(GATED_MASKED, block=(32, 16)), default_config(replace(GATED_MASKED, block=(32, 16)), 512)),
    "input_grad_small_blocks": (replace(INPUT_GRAD, block=(16, 32)), replace(FEW, inputs=16, outputs=32, blocks=4)),
    "input_grad": (INPUT_GRAD, replace(MANY, group=8, inputs=32)),
    "input_grad_masked": (replace(INPUT_GRAD, layout="masked", epilogues=()), MANY),
    "mlp": (replace(PACKED, op="mlp", epilogues=(Epilogue("gelu", bias=True), Epilogue(bias=True))), FEW),
    "gated_mlp_split": (
        replace(MASKED, op="gated_mlp", block=(64, 64), epilogues=(BEFORE, Epilogue(residual=True))),
        replace(FEW, tokens=1, splits=4),
    ),
    "weight_grad": (WEIGHT_GRAD, default_config(WEIGHT_GRAD, 512)),
    "weight_grad_split": (WEIGHT_GRAD, replace(default_config(WEIGHT_GRAD, 512), splits=4)),
    "weight_grad_masked": (replace(WEIGHT_GRAD, layout="masked"), default_config(WEIGHT_GRAD, 512)),
}


@pytest.mark.parametrize("name", list(SOURCES))
def test_source(name: str, golden: Callable[[str, str], None]) -> None:
    source = triton_source(*SOURCES[name])
    golden(source, ".py")
    assert all(line == line.rstrip() and len(line) <= 120 for line in source.splitlines())


@pytest.mark.parametrize("spec", [spec for spec, _ in SOURCES.values()], ids=SOURCES)
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


@pytest.mark.parametrize("tiles", [(8, 64, 64), (64, 128, 64), (64, 64, 128), (48, 64, 64)])
def test_tiles_that_do_not_fit_are_refused(tiles: tuple[int, int, int]) -> None:
    with pytest.raises(TargetError, match="no larger than the block"):
        triton_source(PACKED, TritonConfig(*tiles, num_warps=4, num_stages=3))


def test_odd_warps_are_refused() -> None:
    with pytest.raises(TargetError, match="num_warps"):
        triton_source(PACKED, TritonConfig(64, 64, 64, num_warps=3, num_stages=3))


def test_default_tile_grows_with_tokens_and_stays_inside_the_block() -> None:
    assert [default_config(PACKED, num_tokens).tokens for num_tokens in (1, 2, 16, 17, 64, 100, 4097)] == [
        1,
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


def test_default_tiles_of_large_blocks() -> None:
    """On Hopper four warps take a tile with a light epilogue, eight a gated pair; elsewhere, or ragged, less fits."""
    large = {name: replace(SPECS[name], block=(128, 128), target="cuda:sm_90") for name in ("packed", "gated_packed")}
    found = {name: default_config(spec, 2048) for name, spec in large.items()}
    assert [(c.outputs, c.num_warps) for c in found.values()] == [(128, 8), (128, 8)]
    light = replace(large["packed"], epilogues=(Epilogue(residual=True),))
    assert default_config(light, 2048) == replace(found["packed"], num_warps=4)
    ragged = [default_config(spec, 2048, is_ragged=True) for spec in large.values()]
    assert [(c.outputs, c.num_warps) for c in ragged] == [(64, 8), (64, 8)]
    older = [default_config(replace(spec, target="cuda:sm_80"), 2048) for spec in large.values()]
    assert [(c.outputs, c.num_warps) for c in older] == [(128, 8), (64, 8)]


def test_a_thread_of_amd_loads_16_bytes_of_small_blocks() -> None:
    config = default_config(replace(PACKED, block=(32, 32), target="hip:gfx942"), 2048)
    assert config.outputs * config.inputs * 2 >= 16 * 64 * config.num_warps


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (PACKED, {"splits": 0}, "at least 1"),
        (PACKED, {"blocks": 8}, "at most 256 deep"),
        (PACKED, {"tokens": 1, "is_swapped": True}, "one token"),
        (PACKED, {"splits": 2, "is_persistent": True}, "without splits"),
        (INPUT_GRAD, {"splits": 2}, "without splits"),
        (replace(PACKED, weight_dtype="float32"), {"uses_descriptors": True}, "without descriptors"),
        (WEIGHT_GRAD, {"is_swapped": True}, "of products alone"),
        (WEIGHT_GRAD, {"blocks": 3}, "power of two of whole blocks"),
        (WEIGHT_GRAD, {"blocks": 2, "inputs": 32}, "power of two of whole blocks"),
    ],
)
def test_what_does_not_go_together_is_refused(spec: Spec, changes: dict[str, int], message: str) -> None:
    config = replace(MANY, **changes)  # type: ignore[arg-type]
    with pytest.raises(TargetError, match=message):
        triton_source(spec, config)
