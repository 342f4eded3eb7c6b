"""A bundle for this CPU, built once for all tests that read one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from blast_compile.base import env
from blast_compile.kernels import bundles
from blast_compile.ops import planning
from tests.aot.models import build_net


@pytest.fixture(scope="session")
def _built(_session_store: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if env.cxx() is None:
        pytest.skip("no C++ compiler here")
    return build_net(tmp_path_factory.mktemp("bundle") / "net").folder


@pytest.fixture
def bundle_folder(_built: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    return Path(shutil.copytree(_built, tmp_path / "bundle"))


@pytest.fixture
def no_bundles() -> Iterator[None]:
    """Takes attached bundles away behind the test."""
    yield
    bundles.detach_all()
    planning.forget()
