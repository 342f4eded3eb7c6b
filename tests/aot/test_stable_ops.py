"""The operators without Python: what they give in a process that has no blast_compile, and what they refuse."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blast_compile.aot.jobs import Job
from blast_compile.aot.stable_ops import key_of, link
from blast_compile.base import processor
from blast_compile.base.errors import BuildError
from blast_compile.codegen.cpp.config import default_config
from blast_compile.codegen.cpp.generate import generate
from blast_compile.codegen.family import FORWARD
from blast_compile.kernels import shared_objects
from blast_compile.ops import planning
from blast_compile.ops.call import read_call
from tests.op_cases import FORMS, OPS, Call, Case, make_call

pytestmark = pytest.mark.usefixtures("needs_kernels")
CASES = (
    Case("gated_mlp", block=(16, 16), form="packed", activation="silu", residual=True),
    Case("linear", block=(16, 16), form="masked", activation="gelu"),
)

# In a process that has never heard of this package.
PROGRAM = """
import sys
import torch
torch.ops.load_library(sys.argv[1] + "/ops.so")

def refused(words, op, args):
    try:
        op(*args)
    except RuntimeError as error:
        assert words in str(error), error
    else:
        raise SystemExit(f"{words!r} was not refused")

for number, (name, args, y) in enumerate(torch.load(sys.argv[1] + "/calls.pt")):
    packet = getattr(torch.ops.blast, name)
    for op in (packet, packet.nograd):
        torch.testing.assert_close(op(*args), y, rtol=0, atol=0)
    x = args[0]
    strided = torch.stack([x, x], dim=-1)[..., 0]
    torch.testing.assert_close(op(strided, *args[1:]), y, rtol=0, atol=0)
    assert op(x[:0], *[arg[:0] if arg is not None and type(arg) is torch.Tensor and arg.shape == y.shape else arg
                       for arg in args[1:]]).shape == (0, *y.shape[1:])
    if args[1].dim() == 3:
        damaged = args[2].clone()
        damaged[1] = 10**6
        refused("undamaged mask index", op, [*args[:2], damaged, *args[3:]])
    refused("expected", op, [x[..., :1], *args[1:]])
    refused("packed, its int32 index", op, [x, args[1].flatten(), *args[2:]])
    refused("packed, its int32 index", op, [*args[:2], args[2].long(), *args[3:]])
    refused("packed, its int32 index", op, [*args[:2], args[2].flatten()[:-1], *args[3:]])
    refused("a contiguous bias", op, [*args[:3], args[3][:-1], *args[4:]])
    refused("expected a kernel for blast::" + name, op, [*args[:-2], "relu", args[-1]])
    if number == 0:
        position = len(args) - 6
        assert args[position].shape == y.shape
        refused("a residual like the result", op, [*args[:position], y[:1], *args[position + 1:]])
assert not [name for name in sys.modules if name.startswith("blast")]
"""


def job(call: Call) -> Job:
    arguments = read_call(call.case.op, call.args[:-1])
    spec: Any = planning.spec_of(call.case.op, arguments, processor.cpu_target())
    config = default_config(spec)
    return Job(spec, config, generate(spec, config), (1,))


def test_a_process_without_this_package(tmp_path: Path) -> None:
    calls = [make_call(case, (2, 3)) for case in CASES]
    with torch.no_grad():
        saved: list[tuple[str, list[object], Tensor]] = [(call.case.op, call.args, call.run()) for call in calls]
    torch.save(saved, tmp_path / "calls.pt")
    (tmp_path / "ops.so").write_bytes(link([job(call) for call in calls], workers=2))
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("empty_store")
def test_what_another_process_prunes_before_it_is_linked_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made, removed = shared_objects.made, list[Path]()

    def with_prune(key: Any, source: Any, what: str) -> Path:
        if what.startswith("the operators") and not removed:
            removed.extend(Path(flag).parent for flag in key.flags if flag.endswith("kernel.so"))
            for entry in removed:
                shutil.rmtree(entry)
        return made(key, source, what)

    monkeypatch.setattr(shared_objects, "made", with_prune)
    assert link([job(make_call(CASES[1], (2, 3)))], workers=1).startswith(b"\x7fELF")
    assert len(removed) == 1
    assert removed[0].exists()


def test_keys_tell_calls_apart() -> None:
    """As often as kernels differ; a transposed weight has the kernel of a masked one."""
    cases = [Case(op, form=form, bias=bias) for op in OPS for form in FORMS for bias in (False, True)]
    first, second = CASES
    cases += [first, replace(first, residual=False), replace(first, activation="gelu"), replace(first, block=(8, 8))]
    cases += [second, replace(second, dtype=torch.float16)]
    cases += [replace(second, dtype=torch.float16, weight_dtype=torch.float32)]
    specs = {job(make_call(case, (1,))).spec for case in cases}
    assert len({key_of(spec) for spec in specs}) == len(specs)
    assert len(specs) == len(cases) - 2 * len(FORWARD)


def test_gradients_alone_are_refused() -> None:
    spec = replace(job(make_call(CASES[0], (1,))).spec, op="input_grad", epilogues=())
    with pytest.raises(BuildError, match="expected CPU kernels of forward products, got none"):
        link([Job(spec, default_config(spec), "", (1,))], workers=1)


def test_schemas_are_those_of_the_operators_in_python() -> None:
    for op in FORWARD:
        registered = str(getattr(torch.ops.blast, op).default._schema)
        assert registered == f"blast::{op}{FORWARD[op].schema()}"
