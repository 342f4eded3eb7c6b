"""Threads: rows of one and of several, with and without a neighbour; and the neighbour itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks import neighbour, threads
from benchmarks.case import Case
from benchmarks.rows import Row
from benchmarks.threads import DISTURBED
from blast_compile.tuning.timing import Timing

Call = Callable[..., tuple[str, list[Row]]]
TINY = ["--shape", "128x64", "--quick", "--tokens", "2", "--dtype", "fp32", "--block", "16", "--sparsity", "0.5"]


@pytest.mark.usefixtures("tiny_l3", "no_inductor")
def test_threads(call: Call) -> None:
    output, found = call("threads", *TINY)
    names = ["inductor", "blast"]
    of_one, of_two = ([row for row in found if row.machine.threads == number] for number in (1, 2))
    assert [row.candidate for row in of_one] == names
    assert [row.candidate for row in of_two] == names + [name + DISTURBED for name in names]
    assert torch.get_num_threads() == 2
    assert "x the time with a core taken" in " ".join(output.split())


def test_one_thread_is_nothing_to_compare(call: Call) -> None:
    output, found = call("threads", *TINY, "--threads", "1", exit_code=2)
    assert not found
    assert "expected at least 2 threads" in output


def test_notes_name_gain_and_cost() -> None:
    case, row = Case("threads", "linear", "8x8", "bf16", 128, 32), Timing(18.0, 18.0, 18.0, 1)
    several = [case.row("blast", Timing(10.0, 9.0, 11.0, 3)), case.row("blast" + DISTURBED, Timing(15.0, 9.0, 20.0, 3))]
    found = threads.notes([case.row("blast", row)], several)
    number = torch.get_num_threads()
    assert found == [
        f"128 tokens, blast: 1.80x on {number} threads (1.8x asked for on two); 1.50x the time with a core taken"
    ]


def test_all_threads_are_pinned_and_set_free() -> None:
    before = os.sched_getaffinity(0)
    torch.ones(10**6).sum()  # starts the pool
    cpus = neighbour.cores(1)
    with neighbour.pinned(cpus):
        tasks = [int(task.name) for task in Path("/proc/self/task").iterdir()]
        assert {cpu for task in tasks for cpu in os.sched_getaffinity(task)} == set(cpus)
    assert os.sched_getaffinity(0) == before


def test_cores_are_different() -> None:
    number = len(os.sched_getaffinity(0))
    assert sorted(neighbour.cores(number)) == sorted(os.sched_getaffinity(0))
    assert neighbour.cores(1) == neighbour.cores(number)[:1]


def test_siblings_of_one_core_come_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    monkeypatch.setattr(neighbour, "_siblings", lambda cpu: {0, 1} if cpu < 2 else {2, 3})
    assert neighbour.cores(3) == (0, 2, 1)


def test_a_neighbour_burns_the_core_while_the_block_lasts() -> None:
    cpu = neighbour.cores(1)[0]
    with neighbour.burning(cpu) as pid:
        assert os.sched_getaffinity(pid) == {cpu}
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
