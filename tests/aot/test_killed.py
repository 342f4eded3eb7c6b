"""A build that is killed at any point: the bundle before it stays whole, the store too, and the next build ends it."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from blast_compile.aot import Bundle
from blast_compile.kernels.store import manifest
from tests.aot.models import build_net

NUM_KILLS = 50

# Forks a build a line of its input, and says how it ended: killed after so many seconds, or done.
SERVER = """
import os, signal, sys, time
from contextlib import suppress
from pathlib import Path
from tests.aot.models import build_net
out = Path(sys.argv[1])
for line in sys.stdin:
    seconds, start = float(line), time.monotonic()
    child = os.fork()
    if child == 0:
        os.setsid()  # so that its compilers die with it
        build_net(out, "cpu:portable")
        os._exit(0)
    status = None
    while status is None:
        done, found = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(found)
        elif time.monotonic() - start > seconds:
            with suppress(ProcessLookupError):  # it ended just now, or has no group of its own yet
                os.killpg(child, signal.SIGKILL)
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        else:
            time.sleep(0.002)
    print(status, time.monotonic() - start, flush=True)
"""


def is_whole(entry: Path) -> bool:
    """Whether a store entry's files are those of its manifest; the key is that of the manifest."""
    said = json.loads((entry / manifest.NAME).read_text())
    return all(
        manifest._fingerprint((entry / name).read_bytes()) == expected for name, expected in said["files"].items()
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("needs_kernels")
def test_fifty_kills(tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "place" / "bundle"
    before = build_net(out, "cpu:portable")
    repository = str(Path(__file__).parents[2])
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(out)],
        env={**os.environ, "BLAST_CACHE_DIR": str(store), "PYTHONPATH": repository},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def build_for(seconds: float) -> tuple[int, float]:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write(f"{seconds}\n")
        server.stdin.flush()
        status, took = server.stdout.readline().split()
        return int(status), float(took)

    status, whole = build_for(600)
    assert status == 0
    chance, longest = random.Random(0), whole
    statuses: list[int] = []
    while statuses.count(-9) < NUM_KILLS:
        number = len(statuses)
        assert number < 4 * NUM_KILLS, f"too few were killed: {statuses}"
        if number % 5 == 0 and store.exists():
            store.rename(tmp_path / f"store-{number}")  # so that kills fall into compiling too
            longest = whole
        status, took = build_for(chance.uniform(0, longest))
        if status == 0:
            longest = took  # the next one finds its kernels in the store
        statuses.append(status)
        assert Bundle.open(out).contents.kernels == before.bundle.contents.kernels
        assert all(is_whole(entry) for entry in store.glob("[!.]*"))
    assert set(statuses) <= {0, -9}, "a build failed by itself"
    assert build_for(600)[0] == 0
    server.communicate()
    assert Bundle.open(out).contents.kernels == before.bundle.contents.kernels
    assert sorted(path.name for path in out.parent.iterdir()) == [".bundle.lock", "bundle"], "leftovers are swept"
