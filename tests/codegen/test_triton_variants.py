"""Every way to cut a product up computes what dense float64 computes, in Triton's interpreter."""

from __future__ import annotations

import ast
import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blast_compile.base.errors import TargetError
from blast_compile.codegen.spec import Layout, Op, Spec
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.codegen.triton.generate import triton_source
from tests.codegen.interpreted import error_of, spec_of
from tests.codegen.interpreted_gradients import input_grad_error, weight_grad_error
from tests.codegen.test_triton_launch import LIMITS
from tests.op_cases import FORMS, Case, Form

PLAIN = TritonConfig(tokens=16, outputs=16, inputs=16, num_warps=4, num_stages=3)
VARIANTS = {
    "split": replace(PLAIN, splits=2),
    "split_finely": replace(PLAIN, splits=7),  # more than most rows have blocks
    "vector": replace(PLAIN, tokens=1),
    "vector_split": replace(PLAIN, tokens=1, splits=3),
    "swapped": replace(PLAIN, is_swapped=True),
    "swapped_split": replace(PLAIN, is_swapped=True, splits=2),
    "grouped": replace(PLAIN, group=2),
    "ordered": replace(PLAIN, is_ordered=True),
    "persistent": replace(PLAIN, is_persistent=True),
    "persistent_ordered_grouped": replace(PLAIN, is_persistent=True, is_ordered=True, group=64),
    "descriptors": replace(PLAIN, uses_descriptors=True),
    "descriptors_persistent_swapped": replace(PLAIN, uses_descriptors=True, is_persistent=True, is_swapped=True),
    "blocks": replace(PLAIN, inputs=32, blocks=4),
    "blocks_split_swapped": replace(PLAIN, inputs=32, blocks=2, splits=2, is_swapped=True),
    "blocks_vector": replace(PLAIN, tokens=1, inputs=32, blocks=2),
    "blocks_persistent_ordered": replace(PLAIN, inputs=32, blocks=2, is_persistent=True, is_ordered=True),
    "tf32": replace(PLAIN, precision="tf32"),
}
LINEAR = Case("linear", torch.float32, (32, 32), "packed", "gelu", residual=True)
GATED = Case("gated_linear", torch.bfloat16, (16, 32), "masked", "silu")
OF_MANY = [name for name, config in VARIANTS.items() if not config.is_vector]
MANY_TOKENS = range(0, 301, 37)
EVEN = (96, 0, 80)  # rows of whole 16 bytes, and short blocks at the edges
each_variant = pytest.mark.parametrize("name", list(VARIANTS))


def num_tokens_of(config: TritonConfig) -> int:
    return 2 if config.is_vector else 35  # the interpreter takes a while for a program


@each_variant
@pytest.mark.parametrize("case", [LINEAR, GATED], ids=str)
def test_products(name: str, case: Case, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    config = VARIANTS[name]
    error = interpreter.submit(
        error_of, case, folder, (num_tokens_of(config),), EVEN, config=config, padding=16, num_programs=5
    )
    assert error.result() < LIMITS[case.dtype]


@pytest.mark.parametrize(
    ("name", "form"), [(name, "packed") for name in VARIANTS] + [("split", "masked"), ("descriptors", "transposed")]
)
def test_input_gradients(name: str, form: Form, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    config, case = VARIANTS[name], Case("linear", torch.float32, (32, 16), form)
    error = interpreter.submit(
        input_grad_error, case, folder, num_tokens_of(config), EVEN, config=config, padding=16, num_programs=5
    )
    assert error.result() < LIMITS[case.dtype]


@pytest.mark.parametrize("form", FORMS)
def test_descriptors_read_weights_in_place_whichever_axis_is_adjacent(
    form: Form, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    config = replace(PLAIN, uses_descriptors=True)
    for case in (replace(LINEAR, form=form), replace(GATED, form=form)):
        error = interpreter.submit(error_of, case, folder, (18,), EVEN, config=config, padding=16)
        assert error.result() < LIMITS[case.dtype]


@pytest.mark.parametrize("num_programs", [1, 2, 7, 10_000])
def test_persistent_grids_smaller_and_larger_than_the_work(
    num_programs: int, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    config = replace(PLAIN, is_persistent=True, group=2)
    assert interpreter.submit(error_of, LINEAR, folder, config=config, num_programs=num_programs).result() < 1e-5


@pytest.mark.parametrize("name", ["split", "persistent_ordered_grouped", "swapped", "descriptors"])
@pytest.mark.parametrize("num_tokens", [0, 1, 33])
def test_any_number_of_tokens(name: str, num_tokens: int, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    error = interpreter.submit(error_of, LINEAR, folder, (num_tokens,), EVEN, config=VARIANTS[name], padding=16)
    assert error.result() < 1e-5


@pytest.mark.parametrize(("name", "num_tokens"), list(zip(OF_MANY, itertools.cycle(MANY_TOKENS), strict=False)))
def test_each_variant_at_some_number_of_tokens(
    name: str, num_tokens: int, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    """Those and all others of the next test are in `make test-all`."""
    error = interpreter.submit(error_of, LINEAR, folder, (num_tokens,), EVEN, config=VARIANTS[name], padding=16)
    assert error.result() < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", MANY_TOKENS)
@pytest.mark.parametrize("name", OF_MANY)
def test_many_numbers_of_tokens(name: str, num_tokens: int, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    config = VARIANTS[name]
    error = interpreter.submit(error_of, LINEAR, folder, (num_tokens,), EVEN, config=config, padding=16)
    assert error.result() < 1e-5


@pytest.mark.parametrize("name", ["split_finely", "vector_split", "persistent_ordered_grouped", "descriptors"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_all_empty_and_all_dense(name: str, density: float, interpreter: ProcessPoolExecutor, folder: Path) -> None:
    config = VARIANTS[name]
    error = interpreter.submit(error_of, LINEAR, folder, (2,), EVEN, density=density, config=config, padding=16)
    assert error.result() < 1e-5


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_rows_so_far_apart_that_a_tile_takes_64_bits(
    form: Form, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    """8.6 GB of addresses, of which no more than the rows of x are ever touched."""
    case = Case("linear", torch.float16, (32, 32), form)
    error = interpreter.submit(error_of, case, folder, (16,), EVEN, config=PLAIN, padding=2**28)
    assert error.result() < LIMITS[case.dtype]


@pytest.mark.parametrize("form", FORMS)
def test_weights_of_more_elements_than_32_bits_count(
    form: Form, interpreter: ProcessPoolExecutor, folder: Path
) -> None:
    case = Case("linear", torch.float16, (32, 32), form)
    for config in (PLAIN, VARIANTS["blocks"], VARIANTS["vector"], VARIANTS["descriptors"]):
        error = interpreter.submit(error_of, case, folder, (2,), EVEN, config=config, padding=16, far="weight")
        assert error.result() < LIMITS[case.dtype]


def test_far_rows_of_residuals_and_gradients(interpreter: ProcessPoolExecutor, folder: Path) -> None:
    case = Case("linear", torch.float16, (32, 32), "packed", residual=True)
    error = interpreter.submit(error_of, case, folder, (16,), EVEN, config=PLAIN, far="residual")
    assert error.result() < LIMITS[case.dtype]
    case = replace(case, residual=False)
    error = interpreter.submit(input_grad_error, case, folder, 16, EVEN, config=PLAIN, padding=2**28)
    assert error.result() < LIMITS[case.dtype]
    for config in (PLAIN, replace(PLAIN, splits=2)):
        errors = interpreter.submit(weight_grad_error, case, folder, 32, EVEN, config=config, padding=2**27)
        assert max(errors.result()) < LIMITS[case.dtype]


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_inner_loop_of_a_weight_gradient_divides_nothing_and_reads_no_index(layout: Layout) -> None:
    spec = replace(spec_of(LINEAR), op="weight_grad", layout=layout, epilogues=())
    for config in (PLAIN, replace(PLAIN, inputs=32, blocks=2), replace(PLAIN, splits=2)):
        for loop in inner_loops(spec, config, "gradient"):
            assert not [node for node in ast.walk(loop) if isinstance(node, ast.FloorDiv | ast.Mod | ast.Div)]
            assert "index" not in ast.unparse(loop)


@pytest.mark.parametrize("layout", ["masked", "packed"])
@pytest.mark.parametrize("op", ["linear", "input_grad"])
def test_inner_loop_divides_nothing(op: Op, layout: Layout) -> None:
    spec = replace(spec_of(LINEAR), op=op, layout=layout, epilogues=spec_of(LINEAR).epilogues * (op == "linear"))
    for config in VARIANTS.values():
        for loop in inner_loops(spec, config):
            assert not [node for node in ast.walk(loop) if isinstance(node, ast.FloorDiv | ast.Mod | ast.Div)]


@pytest.mark.parametrize("layout", ["masked", "packed"])
def test_inner_loop_reads_a_column_when_a_block_ends(layout: Layout) -> None:
    spec = replace(spec_of(LINEAR), op="input_grad", layout=layout, epilogues=())
    (loop,) = inner_loops(spec, PLAIN)  # two steps a block
    loads = [
        ast.unparse(node)
        for node in ast.walk(loop)
        if isinstance(node, ast.Call)
        if "tl.load(" in ast.unparse(node.func) + "("
    ]
    of_index = [load for load in loads if "next_ptr" in load or "places_ptr" in load]
    assert len(of_index) == (2 if layout == "packed" else 1)
    assert all("mask=is_next" in load for load in of_index)
    assert "is_next = (slice == 1) & (step + 1 < num_steps)" in ast.unparse(loop)


def inner_loops(spec: Spec, config: TritonConfig, name: str = "product") -> list[ast.For]:
    """The loop over blocks, or tokens, in the source of a kernel."""
    (function,) = (
        node
        for node in ast.parse(triton_source(spec, config)).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    loops = [node for node in ast.walk(function) if isinstance(node, ast.For)]
    assert len(loops) == 1
    return loops


def test_rows_that_no_descriptor_can_cover_are_refused(interpreter: ProcessPoolExecutor, folder: Path) -> None:
    config = replace(PLAIN, uses_descriptors=True)
    with pytest.raises(TargetError, match="multiples of 16 bytes for x_desc"):
        interpreter.submit(error_of, LINEAR, folder, (18,), EVEN, config=config, padding=3).result()
