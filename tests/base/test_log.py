"""The ladder of BLAST_DEBUG, and warnings that are said once."""

from __future__ import annotations

import logging
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from blast_compile.base import log


def test_warn_once_speaks_once_for_a_key(caplog: pytest.LogCaptureFixture) -> None:
    for key in ("a", "b", "a"):
        log.warn_once(key, f"about {key}")
    assert [(r.levelno, r.getMessage()) for r in caplog.records] == [
        (logging.WARNING, "about a"),
        (logging.WARNING, "about b"),
    ]
    assert caplog.records[0].filename == "test_log.py"


def test_warn_once_speaks_once_for_many_threads(caplog: pytest.LogCaptureFixture) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: log.warn_once("key", "once"), range(64)))
    assert len(caplog.records) == 1


def test_warning_with_percent_signs_is_taken_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    log.warn_once("key", "90% of %s")
    assert caplog.messages == ["90% of %s"]


def test_debug_speaks_from_its_level_on(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    for level in range(5):
        monkeypatch.setenv("BLAST_DEBUG", str(level))
        log.debug(2, "at %d", level)
    assert caplog.messages == ["at 2", "at 3", "at 4"]
    assert caplog.records[0].filename == "test_log.py"


@pytest.mark.parametrize(("level", "expected"), [("", ""), ("1", "blast_compile DEBUG: chose 3\n")])
def test_debug_reaches_standard_error_without_any_setup(level: str, expected: str) -> None:
    code = "from blast_compile.base import log; log.debug(1, 'chose %d', 3); log.debug(2, 'never'); print(end='')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"BLAST_DEBUG": level}, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("", expected)
