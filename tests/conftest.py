"""What every test gets: no settings of the caller, an own store, and warnings that speak again."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from blast_compile import log


@pytest.fixture(scope="session", autouse=True)
def _session_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One store for the session, away from the user's, so that a kernel is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("BLAST_")]:
            patch.delenv(name)
        patch.setenv("BLAST_CACHE_DIR", str(tmp_path_factory.mktemp("store") / "blast_compile"))
        yield


@pytest.fixture(autouse=True)
def _fresh_warnings() -> Iterator[None]:
    log.forget_warnings()
    yield
    log.forget_warnings()
