"""Several processes and killed ones: no work is done twice, nothing measured is lost, nothing half-written is used.

Each test runs a parent that imports torch once and forks, since fifty imports would take minutes. Kernels are built
before, so that children measure and write all the time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("needs_kernels")

COMMON = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from blast_compile import ops
from blast_compile.base import processor
from blast_compile.base.log import logger
from blast_compile.kernels import cpu
from blast_compile.tuning import machine, measure_machine, session, workload
from blast_compile.kernels.plans.database import Database
from blast_compile.tuning.space import space_of
from blast_compile.tuning.tune import tune_all, tune_problem
from tests.tuning.cases import problem
measure_machine._STEPS, measure_machine._REPEATS = 2000, 1
measure_machine.l3_bytes = workload.l3_bytes = lambda: 2**16
session._SECONDS = session._FINAL_SECONDS = 0.0
TARGET = processor.cpu_target()

def of(tokens):
    return problem(tokens, target=TARGET, threads=1)

space = space_of(of(16)).only("row_group")
for config in space.all():
    assert cpu.kernel_for(of(16).spec, None if config == space.default else config).run
machine.this_cpu(1)
database = lambda: Database(Path(sys.argv[1]), "here")
"""

KILLED = (
    COMMON
    + """
logger.warning = lambda *args, **kw: print("WARNED", args, file=sys.stderr)
Database.trials = lambda *_: {}  # so that every run measures everything, and writes
tune = lambda: tune_problem(of(16), database(), search="exhaustive", space=space, again=True)
start = time.monotonic()
tune()
longest = time.monotonic() - start
rng, before, killed, seen = random.Random(0), {}, 0, []
for number in range(60):
    child = os.fork()
    if child == 0:
        while True:
            tune()
    time.sleep(rng.uniform(0, 2 * longest))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    now = {record.config: record for record in database().records()}
    assert set(before) <= set(now), "a record was lost"
    assert any(record.outcome == "chosen" for record in now.values())
    assert all(record.date >= before[config].date for config, record in now.items() if config in before)
    before = now
    seen.append(len(now))
final = tune()
temporary = [path.name for path in Path(sys.argv[1]).rglob(".temporary-*")]
print(json.dumps({"killed": killed, "seen": seen, "state": final.state, "temporary": len(temporary)}))
"""
)

EIGHT = (
    COMMON
    + """
problems = [of(tokens) for tokens in (1, 16, 64)]
read, write = os.pipe()
children = []
for _ in range(8):
    child = os.fork()
    if child == 0:
        done = tune_all(problems, database(), search="random", trials=4)
        os.write(write, (json.dumps([[t.problem.tokens, t.state, t.num_trials] for t in done]) + "\\n").encode())
        os._exit(0)
    children.append(child)
statuses = [os.waitpid(child, 0)[1] for child in children]
os.close(write)
with os.fdopen(read) as lines:
    done = [json.loads(line) for line in lines]
records = list(database().records())
print(json.dumps({"statuses": statuses, "done": done, "records": len(records),
                  "chosen": sorted(r.problem.tokens for r in records if r.outcome == "chosen")}))
"""
)


def run(script: str, folder: Path) -> tuple[dict[str, Any], str]:
    root = Path(__file__).parents[2]
    plans = folder / "store" / "plans"
    command = [sys.executable, "-c", script, str(plans)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_killed_at_any_point_nothing_is_lost_or_half_written(tmp_path: Path) -> None:
    found, errors = run(KILLED, tmp_path)
    assert found["killed"] == 60
    assert found["state"] == "tuned"
    assert "WARNED" not in errors, "a record could not be read"
    assert set(found["seen"]) == {5}
    assert found["temporary"] <= 60


def test_eight_processes_share_the_work(tmp_path: Path) -> None:
    found, _ = run(EIGHT, tmp_path)
    assert found["statuses"] == [0] * 8
    assert len(found["done"]) == 8
    states = [(tokens, state, trials) for process in found["done"] for tokens, state, trials in process]
    tuned = [(tokens, trials) for tokens, state, trials in states if state == "tuned"]
    assert sorted(tokens for tokens, _ in tuned) == [1, 16, 64], "each problem is tuned once"
    assert len(states) == 24
    assert found["chosen"] == [1, 16, 64]
    assert found["records"] >= sum(trials for _, trials in tuned) == 12
