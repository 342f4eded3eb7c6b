"""Generated C++: determinism, what is refused, clean compiles on every instruction set, and the loop that counts."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from blast_compile.base import env
from blast_compile.base.env import ISAS, Isa
from blast_compile.codegen.cpp import build
from blast_compile.codegen.cpp.config import (
    CpuConfig,
    default_config,
    has_pairs,
    is_turned,
    num_registers,
    vector_length,
    why_none,
)
from blast_compile.codegen.cpp.generate import generate
from blast_compile.codegen.spec import Dtype, Epilogue, Layout, Op, Spec

SMALL = Spec("linear", "float32", "float32", (8, 8), (Epilogue("relu", bias=True),), "packed", "cpu:portable")
GATED = Epilogue("silu", bias=True, gate=True, gate_bias=True)
DOWN = Epilogue(bias=True, residual=True)
EPILOGUES: dict[Op, tuple[Epilogue, ...]] = {
    "linear": (Epilogue("gelu", bias=True, residual=True),),
    "gated_linear": (GATED,),
    "mlp": (Epilogue("gelu_tanh"), DOWN),
    "gated_mlp": (GATED, DOWN),
    "input_grad": (),
    "weight_grad": (),
}
DTYPES: tuple[tuple[Dtype, Dtype], ...] = (
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
    ("float16", "float16"),
    ("float16", "float32"),
)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
# Every op and instruction set, each dtype and layout beside several of them; edges that vectors divide and odd ones.
COMPILED: tuple[tuple[Isa, Op, int, Layout, tuple[int, int]], ...] = (
    ("portable", "gated_mlp", 0, "packed", (32, 32)),
    ("portable", "weight_grad", 2, "masked", (13, 17)),
    ("portable", "input_grad", 3, "packed", (32, 32)),
    ("avx2", "mlp", 1, "masked", (32, 32)),
    ("avx2", "input_grad", 0, "packed", (13, 17)),
    ("avx2", "weight_grad", 3, "packed", (32, 32)),
    ("avx512", "gated_linear", 2, "packed", (13, 17)),
    ("avx512", "linear", 4, "masked", (13, 17)),
    ("avx512", "weight_grad", 1, "packed", (32, 32)),
    ("avx512_bf16", "linear", 1, "packed", (13, 17)),
    ("avx512_bf16", "gated_mlp", 2, "masked", (13, 17)),
    ("avx512_bf16", "input_grad", 1, "masked", (32, 32)),
    ("avx512_bf16", "weight_grad", 1, "masked", (32, 32)),
)


def spec_of(isa: Isa, op: Op, dtypes: tuple[Dtype, Dtype], layout: Layout, block: tuple[int, int]) -> Spec:
    return Spec(op, *dtypes, block, EPILOGUES[op], layout, f"cpu:{isa}")


def compile_object(source: str, isa: Isa, folder: Path) -> Path:
    """Compiles with warnings; those of the compiler's own headers and of its remarks without a name are not ours."""
    compiler = env.cxx()
    if compiler is None:
        pytest.skip("no C++ compiler here")
    (folder / "kernel.cpp").write_text(source)
    plain = [flag for flag in build.flags(isa) if flag not in ("-shared", "-w")]
    command = [compiler, *plain, "-Wall", "-Wextra", "-c", str(folder / "kernel.cpp"), "-o", str(folder / "kernel.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not re.findall(r"kernel\.cpp:[\d:]* warning: .*\[-W.*", done.stderr)
    return folder / "kernel.o"


def test_source(golden: Callable[[str, str], None]) -> None:
    golden(generate(SMALL), ".cpp")


def test_source_opens_with_its_spec_and_config() -> None:
    spec = spec_of("avx512", "gated_mlp", DTYPES[1], "masked", (16, 24))
    config = replace(default_config(spec), span=256)
    first, second, *_ = generate(spec, config).splitlines()
    names = {"Spec": Spec, "Epilogue": Epilogue, "CpuConfig": CpuConfig}
    assert eval(first.removeprefix("// "), names) == spec  # noqa: S307 - our own text
    assert eval(second.removeprefix("// "), names) == config  # noqa: S307


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("op", EPILOGUES)
def test_every_spec_has_one_text_of_its_own(op: Op, isa: Isa) -> None:
    texts = set()
    specs = [
        spec_of(isa, op, dtypes, layout, block)
        for dtypes, layout, block in itertools.product(DTYPES, LAYOUTS, ((32, 32), (13, 17)))
    ]
    for spec in specs:
        assert not why_none(spec)
        text = generate(spec)
        assert text == generate(replace(spec))
        assert all(line == line.rstrip() and len(line) <= 150 for line in text.splitlines()[2:])
        assert not re.search(r"{{|{%|\bNone\b|\bTrue\b|\bFalse\b", "\n".join(text.splitlines()[2:]))
        texts.add(text)
    assert len(texts) == len(specs)


def test_config_decides_the_text() -> None:
    config = default_config(SMALL)
    assert generate(SMALL) == generate(SMALL, config)
    changes: list[dict[str, Any]] = [{"token_tile": 3}, {"vectors": 1}, {"panel_bytes": 4096}, {"row_group": 2}]
    changes += [{"span": 64}, {"share": "rows"}, {"share_tokens": 32}, {"chains": 2}, {"unroll": 2}, {"threads": 1}]
    changes += [{"split": 2}]
    for change in changes:
        assert generate(SMALL, replace(config, **change)) != generate(SMALL)


def test_what_is_supported() -> None:
    assert not why_none(SMALL)
    assert not why_none(replace(SMALL, block=(256, 256)))
    assert not why_none(replace(SMALL, dtype="bfloat16"))
    assert not why_none(replace(SMALL, dtype="float16"))
    assert not why_none(replace(SMALL, dtype="float16", weight_dtype="float16"))
    assert why_none(replace(SMALL, weight_dtype="bfloat16"))
    assert why_none(replace(SMALL, dtype="float16", weight_dtype="bfloat16"))
    assert why_none(replace(SMALL, block=(7, 8)))
    assert why_none(replace(SMALL, block=(8, 7)))


def test_gathered_rows_are_not_split() -> None:
    for spec in (replace(SMALL, layout="masked"), replace(SMALL, op="input_grad"), replace(SMALL, op="weight_grad")):
        split = generate(spec, replace(default_config(spec), split=2))
        assert split.splitlines()[2:] == generate(spec).splitlines()[2:]


@pytest.mark.parametrize(("isa", "registers"), [("portable", 16), ("avx2", 16), ("avx512", 32), ("avx512_bf16", 32)])
def test_default_tile_fills_the_registers_and_no_more(isa: Isa, registers: int) -> None:
    for layout in LAYOUTS:
        spec = replace(SMALL, target=f"cpu:{isa}", layout=layout)
        config = default_config(spec)
        assert registers * 0.75 < num_registers(spec, config) <= registers


@pytest.mark.parametrize(("isa", "op", "dtypes", "layout", "block"), COMPILED)
def test_compiles_without_a_warning(
    isa: Isa, op: Op, dtypes: int, layout: Layout, block: tuple[int, int], tmp_path: Path
) -> None:
    source = generate(spec_of(isa, op, DTYPES[dtypes], layout, block))
    compile_object(source, isa, tmp_path)


@pytest.mark.skipif(shutil.which("clang++") is None, reason="no clang++ here")
@pytest.mark.parametrize(("isa", "op", "dtypes", "layout", "block"), COMPILED[::4])
def test_compiles_with_clang(
    isa: Isa, op: Op, dtypes: int, layout: Layout, block: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLAST_CXX", "clang++")
    assert build.compile_cpp(generate(spec_of(isa, op, DTYPES[dtypes], layout, block)), isa)


@pytest.mark.skipif(shutil.which("objdump") is None, reason="needs objdump")
@pytest.mark.parametrize("dtypes", [DTYPES[0], DTYPES[1], DTYPES[3]])
@pytest.mark.parametrize(
    ("isa", "edge"), [("avx2", 32), ("avx512", 32), ("avx512", 16), ("avx512_bf16", 32), ("avx512_bf16", 16)]
)
def test_inner_loops_do_nothing_but_load_and_multiply(
    isa: Isa, edge: int, dtypes: tuple[Dtype, Dtype], tmp_path: Path
) -> None:
    spec = replace(spec_of(isa, "linear", dtypes, "packed", (edge, 32)), epilogues=(Epilogue(),))
    multiply_add = "vdpbf16ps" if has_pairs(spec) else r"vfmadd\w+ps"
    load = r"vp?broadcast\w+|vmov\w+|vpmovzxwd|vpslld|vcvtph2ps|vpunpck[lh]wd|vpermt2w"
    allowed = re.compile(rf"({multiply_add}|{load}|prefetcht0|add|sub|lea|cmp|j\w+) ")
    tiles = set()
    for loop in loops(compile_object(generate(spec), isa, tmp_path)):
        num = sum(bool(re.match(multiply_add, line)) for line in loop)
        if num:
            tiles.add(num)
            others = [line for line in loop if not allowed.match(line) or re.search(r"\(%r[sb]p", line)]
            assert not others, "\n".join(loop)
    config = default_config(spec)
    assert tiles >= {num_sums(spec, size, config.vectors) for size in config.tiles if size > 2}


def num_sums(spec: Spec, tile: int, vectors: int) -> int:
    """Multiply-adds of a step: for each token a vector or more, or half of a block's outputs by vectors of tokens."""
    lanes = vector_length(spec)
    return lanes // 2 * (tile // lanes) if is_turned(spec, tile) else tile * vectors


def loops(binary: Path) -> Iterator[list[str]]:
    """The innermost loops of an object file, as lines of assembly."""
    command = ["objdump", "-d", "--no-show-raw-insn", str(binary)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [(int(at, 16), code) for at, code in re.findall(r"^ *([0-9a-f]+):\t(.*)$", text, re.MULTILINE)]
    places = {at: number for number, (at, _) in enumerate(lines)}
    for number, (_, code) in enumerate(lines):
        jump = re.match(r"j\w+ +([0-9a-f]+) ", code)
        start = places.get(int(jump[1], 16), number) if jump else number
        body = [text for _, text in lines[start:number]]
        if body and not any(re.match(r"j\w+ ", text) for text in body):
            yield body
