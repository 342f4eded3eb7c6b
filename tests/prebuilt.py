"""Compiles the kernels that the tests of a file are going to ask for, several at once, before the first one runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest

from blast_compile.base import env
from blast_compile.codegen.spec import Op
from blast_compile.kernels import shared_objects
from tests.codegen.raw_calls import raw_call
from tests.op_cases import make_call


def build(request: pytest.FixtureRequest, gradients: Sequence[Op] = ()) -> None:
    """Builds for the selected tests of the file that have parameters `isa` and `case`, and perhaps `op`.

    gradients: of each case these as well. What fails to build is left to the tests to find.
    """
    if env.cxx() is None:
        return
    specs = set()
    for item in request.session.items:
        parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
        if item.path != request.path or not {"isa", "case"} <= parameters.keys():
            continue
        isa, case = parameters["isa"], parameters["case"]
        for op in (parameters.get("op", case.op), *gradients):
            call = make_call(case, (1,))
            spec = raw_call(call, op if op in ("input_grad", "weight_grad") else None).spec
            specs.add(replace(spec, target=f"cpu:{isa}"))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        wait([pool.submit(shared_objects.shared_object, spec) for spec in specs])
