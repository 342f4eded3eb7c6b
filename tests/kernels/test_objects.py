"""Shared objects in the store: found by what they are made from, made in private where it is cleared all the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from blast_compile.codegen.cpp import build, families, generate
from blast_compile.codegen.cpp.config import default_config
from blast_compile.codegen.spec import Epilogue, Spec
from blast_compile.kernels import shared_objects
from blast_compile.kernels.store.store import Store

pytestmark = pytest.mark.usefixtures("empty_store", "needs_kernels")
SPEC = Spec("linear", "float32", "float32", (16, 16), (Epilogue(),), "packed", "cpu:portable")


def test_a_kernel_in_the_store_is_found_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    path = shared_objects.shared_object(SPEC)
    assert path.with_name("kernel.cpp").read_text() == generate.generate(SPEC)
    silent = replace(families.FAMILIES[Spec], generate=lambda *_: pytest.fail("the text was generated"))
    monkeypatch.setitem(families.FAMILIES, Spec, silent)
    assert shared_objects.shared_object(SPEC) == shared_objects.shared_object(SPEC, default_config(SPEC)) == path


def test_other_generators_make_other_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[shared_objects.KernelKey] = []
    monkeypatch.setattr(shared_objects, "made", lambda key, *_: keys.append(key))
    shared_objects.shared_object(SPEC)
    monkeypatch.setattr(shared_objects, "fingerprint", lambda: "another")
    shared_objects.shared_object(SPEC)
    monkeypatch.setattr(shared_objects, "_libraries", lambda: (("jinja2", "99"),))
    shared_objects.shared_object(SPEC)
    assert len(set(keys)) == 3


def test_a_store_that_is_cleared_all_the_time_costs_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    def compiled() -> Path:
        return shared_objects.compiled(
            'extern "C" int blast_run(const void*) { return 7; }', ("-shared", "-fPIC"), "a kernel"
        )

    def load_too_late(path: Path) -> Callable[[int], int]:
        Store.default().clear()  # as another process might, before each use
        return build.load(path)

    run = shared_objects.using(compiled, load_too_late)
    assert run(0) == 7
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "another process clears the store again and again; this one keeps a kernel for itself"
    ]
    assert shared_objects.open_store().root == Store.default().root
