"""A build while another process empties the store again and again: the bundle is whole all the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blast_compile.kernels.bundles import Bundle
from tests.aot.models import build_net

CLEARER = """
import sys, time
from pathlib import Path
from blast_compile.kernels.store.store import Store
store, removed = Store(Path(sys.argv[1])), 0
print("ready", flush=True)
while not Path(sys.argv[2]).exists():
    removed += store.clear()
    time.sleep(0.5)
print(removed)
"""


@pytest.mark.slow  # some kernels are compiled several times
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("needs_kernels", "empty_store")
def test_a_build_ends_while_another_process_clears_the_store(tmp_path: Path) -> None:
    store, done = os.environ["BLAST_CACHE_DIR"], tmp_path / "done"
    clearer = subprocess.Popen(
        [sys.executable, "-c", CLEARER, store, str(done)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert clearer.stdout is not None
    try:
        assert clearer.stdout.readline() == "ready\n"
        built = [build_net(tmp_path / f"bundle-{number}", "cpu:portable") for number in range(3)]
    finally:
        done.touch()
        removed, _ = clearer.communicate(timeout=60)
    assert int(removed) > 0
    for report in built:
        assert Bundle.open(report.folder).contents.kernels == built[0].bundle.contents.kernels
        assert not report.skipped
