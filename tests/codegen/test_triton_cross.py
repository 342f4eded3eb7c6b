"""Generated Triton compiled for GPUs that are not there: tensor cores, registers, spills."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from blast_compile.base.errors import BuildError, TargetError
from blast_compile.codegen.spec import Dtype, Epilogue, Layout, Op, Spec
from blast_compile.codegen.triton.build import import_triton, load_kernel
from blast_compile.codegen.triton.config import TritonConfig, default_config
from blast_compile.codegen.triton.cross import CompiledKernel, Variant, cross_compile, digest

LINEAR = Spec("linear", "bfloat16", "bfloat16", (64, 64), (Epilogue("gelu", bias=True),), "packed", "cuda:sm_90")
# What one program may have.
SHARED_BYTES = {"cuda:sm_80": 163, "cuda:sm_90": 227, "cuda:sm_100": 227, "hip:gfx942": 64}


def make_spec(op: Op, dtype: Dtype, block: tuple[int, int], layout: Layout, target: str) -> Spec:
    is_gated = op == "gated_linear"
    epilogue = Epilogue("silu", bias=True, gate=is_gated, gate_bias=is_gated, residual=not is_gated)
    return Spec(op, dtype, dtype, block, (epilogue,), layout, target)


def build(
    spec: Spec,
    num_tokens: int,
    folder: Path,
    config: TritonConfig | None = None,
    helper: str | None = None,
    **settings: bool,
) -> CompiledKernel:
    kernel = load_kernel(spec, config or default_config(spec, num_tokens), folder)
    compiled = cross_compile(kernel, Variant(helper=helper, **settings))
    assert compiled.target == spec.target
    assert compiled.binary.startswith(b"\x7fELF")
    assert compiled.num_spills == 0
    assert compiled.registers <= 255
    assert compiled.shared_bytes <= SHARED_BYTES[spec.target] * 1024
    return compiled


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize("op", ["linear", "gated_linear"])
@pytest.mark.parametrize(
    ("num_tokens", "block", "dtype"),
    [(16, (64, 64), "bfloat16"), (64, (32, 32), "float16"), (512, (64, 64), "bfloat16"), (512, (256, 256), "bfloat16")],
)
def test_hopper_uses_tensor_cores_and_wide_copies(
    op: Op, layout: Layout, num_tokens: int, block: tuple[int, int], dtype: Dtype, tmp_path: Path
) -> None:
    compiled = build(make_spec(op, dtype, block, layout, "cuda:sm_90"), num_tokens, tmp_path)
    assert (compiled.num_wgmma > 0) == (num_tokens >= 64)
    assert (compiled.num_mma > 0) == (num_tokens < 64)
    assert compiled.copy_bytes == (16,)


@pytest.mark.parametrize("layout", ["packed", "masked"])
@pytest.mark.parametrize(("num_tokens", "block"), [(16, (64, 64)), (512, (32, 32)), (512, (128, 128))])
def test_cdna3_uses_matrix_cores(layout: Layout, num_tokens: int, block: tuple[int, int], tmp_path: Path) -> None:
    assert build(make_spec("gated_linear", "bfloat16", block, layout, "hip:gfx942"), num_tokens, tmp_path).num_mfma > 0


@pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])
@pytest.mark.parametrize(("is_ragged", "is_transposed"), [(True, False), (False, True)])
def test_ragged_and_transposed_weights(target: str, is_ragged: bool, is_transposed: bool, tmp_path: Path) -> None:
    spec = make_spec("linear", "bfloat16", (64, 64), "masked", target)
    build(spec, 512, tmp_path, is_ragged=is_ragged, is_transposed=is_transposed)


@pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])
@pytest.mark.parametrize("layout", ["packed", "masked"])
def test_gradients_use_tensor_cores_and_wide_copies(layout: Layout, target: str, tmp_path: Path) -> None:
    inputs = Spec("input_grad", "bfloat16", "bfloat16", (64, 64), (), layout, target)
    weights = replace(inputs, op="weight_grad")
    through = replace(inputs, epilogues=(Epilogue("silu", gate=True),))
    for compiled in (
        build(inputs, 512, tmp_path, is_transposed=True),
        build(through, 512, tmp_path, is_transposed=True),
        build(weights, 512, tmp_path),
        build(weights, 512, tmp_path, helper="block_norms"),
    ):
        assert compiled.num_wgmma + compiled.num_mfma > 0
        assert compiled.copy_bytes == ((16,) if target == "cuda:sm_90" else ())


def test_float32_is_not_rounded_for_tensor_cores(tmp_path: Path) -> None:
    compiled = build(make_spec("linear", "float32", (64, 64), "packed", "cuda:sm_90"), 512, tmp_path)
    assert compiled.num_wgmma == compiled.num_mma == 0


def test_other_generations(tmp_path: Path) -> None:
    spec = make_spec("linear", "bfloat16", (64, 64), "packed", "cuda:sm_80")
    assert build(spec, 512, tmp_path).num_mma > 0
    assert build(replace(spec, target="cuda:sm_100"), 512, tmp_path).num_tcgen05 > 0


def test_weights_in_float32_beside_16_bits_use_tensor_cores(tmp_path: Path) -> None:
    spec = replace(make_spec("linear", "bfloat16", (64, 64), "masked", "cuda:sm_90"), weight_dtype="float32")
    assert build(spec, 512, tmp_path).num_wgmma > 0


def test_spills_are_seen(tmp_path: Path) -> None:
    spec = make_spec("linear", "bfloat16", (128, 128), "packed", "cuda:sm_90")
    compiled = cross_compile(load_kernel(spec, TritonConfig(256, 128, 64, num_warps=4, num_stages=2), tmp_path))
    assert compiled.num_spills > 0


def test_what_triton_refuses_is_a_build_error(tmp_path: Path) -> None:
    spec = replace(LINEAR, target="hip:gfx000")
    kernel = load_kernel(spec, default_config(spec, 64), tmp_path)
    with pytest.raises(BuildError, match="expected Triton to compile"):
        cross_compile(kernel)


@pytest.mark.parametrize("target", ["cpu:avx2", "cuda:90", "cuda:sm_99", "hip:sm_90"])
def test_unknown_targets_are_refused(target: str, tmp_path: Path) -> None:
    kernel = load_kernel(replace(LINEAR, target=target), default_config(LINEAR, 1), tmp_path)
    with pytest.raises(TargetError, match="expected cuda:sm_80, "):
        cross_compile(kernel)


FEW = TritonConfig(16, 64, 64, num_warps=4, num_stages=4)
MANY = TritonConfig(128, 64, 64, num_warps=8, num_stages=4)
VARIANTS = {
    "vector": replace(FEW, tokens=1),
    "split": replace(FEW, splits=4),
    "swapped": replace(FEW, is_swapped=True),
    "grouped and ordered": replace(MANY, group=8, is_ordered=True),
    "persistent": replace(MANY, is_persistent=True),
    "descriptors": replace(MANY, uses_descriptors=True),
}


@pytest.mark.parametrize("target", ["cuda:sm_90", "hip:gfx942"])
@pytest.mark.parametrize("name", list(VARIANTS))
def test_variants(name: str, target: str, tmp_path: Path) -> None:
    config = VARIANTS[name] if target == "cuda:sm_90" else replace(VARIANTS[name], num_stages=2)
    compiled = build(make_spec("linear", "bfloat16", (64, 64), "packed", target), 1, tmp_path, config)
    uses_engine = config.uses_descriptors and target == "cuda:sm_90"
    assert ("cp.async.bulk.tensor" in compiled.text) == uses_engine
    assert compiled.copy_bytes == ((16,) if target == "cuda:sm_90" and not uses_engine else ())
    num_products = compiled.num_mma + compiled.num_wgmma + compiled.num_mfma
    assert (num_products > 0) == (not config.is_vector)
    if config.is_swapped and target == "cuda:sm_90":  # 64 outputs stand where 16 tokens would
        assert compiled.num_wgmma > 0
    if config.splits > 1:
        build(make_spec("linear", "bfloat16", (64, 64), "packed", target), 1, tmp_path, config, helper="reduce")


def test_tf32_and_wide_offsets(tmp_path: Path) -> None:
    spec = make_spec("linear", "float32", (64, 64), "masked", "cuda:sm_90")
    config = replace(default_config(spec, 512), precision="tf32")
    assert build(spec, 512, tmp_path, config).num_wgmma > 0
    assert build(spec, 512, tmp_path, config, is_wide=True).num_wgmma > 0


def test_what_is_compiled_for_a_launch_lies_in_the_cache_of_triton(tmp_path: Path) -> None:
    triton = import_triton()
    kernel = load_kernel(LINEAR, default_config(LINEAR, 16), tmp_path / "kernels")
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(tmp_path / "cache")
        compiled = cross_compile(kernel, in_cache=True)
    assert [path.name for path in (tmp_path / "cache").rglob("*.cubin")] == ["linear.cubin"]
    assert not list((tmp_path / "kernels").rglob("*.cubin"))
    assert compiled.metadata in {path.read_text() for path in (tmp_path / "cache").rglob("linear.json")}


def test_a_digest_tells_apart_what_the_compiler_is_given(tmp_path: Path) -> None:
    usual = replace(LINEAR, layout="masked")
    config = default_config(usual, 512)
    kernel = load_kernel(usual, config, tmp_path)
    flags = [Variant(), Variant(is_uneven=True), Variant(is_wide=True), Variant(is_transposed=True)]
    flags.append(Variant(is_ragged=True))
    digests = [digest(kernel, variant) for variant in flags]
    for spec, other in [
        (usual, replace(config, num_warps=2 * config.num_warps)),
        (usual, replace(config, num_stages=config.num_stages + 1)),
        (replace(usual, target="cuda:sm_100"), config),
        (replace(usual, dtype="float16", weight_dtype="float16"), config),
        (replace(usual, epilogues=(Epilogue("silu", bias=True),)), config),
    ]:
        digests.append(digest(load_kernel(spec, other, tmp_path), Variant()))
    assert len(set(digests)) == len(digests)
    assert digests[0] == digest(load_kernel(usual, config, tmp_path / "elsewhere"), Variant())
