"""What tests of generated kernels share: a process with Triton's interpreter, and a folder for kernels."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from tests.codegen.interpreted import choose_interpreter


@pytest.fixture(scope="session")
def interpreter() -> Iterator[ProcessPoolExecutor]:
    """One process that interprets kernels; this one can still compile them."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), choose_interpreter) as pool:
        yield pool


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where generated kernels lie."""
    return tmp_path_factory.mktemp("kernels")
