"""Work in processes of its own: what one item does to its process takes nothing else along."""

from __future__ import annotations

import os
import sys
import time
from functools import partial

import pytest

from benchmarks.on_gpu import isolated
from benchmarks.on_gpu.deadline import Deadline
from benchmarks.on_gpu.isolated import Give, Left, Lost

ITEMS = ("a", "b", "c", "d")


class BrokenGpu:
    """Stands for torch: after an error of a kernel, whatever waits for the GPU raises it again."""

    class cuda:  # noqa: N801 - as torch calls it
        is_initialized = staticmethod(lambda: True)
        empty_cache = staticmethod(lambda: None)

        @staticmethod
        def synchronize() -> None:
            raise RuntimeError("an illegal memory access was encountered")


def work(item: str, give: Give, *, bad: str = "", how: str = "") -> None:
    """Gives an item in capitals, but for a bad one."""
    if item != bad:
        give(item.upper())
        return
    give("begun")
    if how == "raises":
        raise ValueError(f"no {item}\nand more")
    if how == "dies":
        os._exit(7)
    if how == "breaks":
        sys.modules["torch"] = BrokenGpu  # type: ignore[assignment]
        raise RuntimeError("CUDA error")
    time.sleep(600)


def number_of(_: str, give: Give) -> None:
    """Gives the number of its process, and leaves that without a GPU."""
    give(os.getpid())
    work("b", lambda _: None, bad="b", how="breaks")


def refuse() -> None:
    raise RuntimeError("nothing works here")


def found(how: str, seconds: float = 100.0, **options: int) -> list[object]:
    return list(isolated.run(partial(work, bad="b", how=how), ITEMS, Deadline.after(seconds), **options))  # type: ignore[arg-type]


def test_all_is_given_in_order() -> None:
    assert found("raises")[0] == "A"
    assert list(isolated.run(work, ITEMS, Deadline.after(100))) == ["A", "B", "C", "D"]


@pytest.mark.parametrize(
    ("how", "reason"), [("raises", "ValueError: no b"), ("dies", "its process ended with status 7")]
)
def test_the_rest_goes_on_where_one_is_lost(how: str, reason: str) -> None:
    assert found(how) == ["A", "begun", Lost("b", reason), "C", "D"]


def test_a_process_that_lost_its_gpu_does_no_more() -> None:
    given = list(isolated.run(number_of, ITEMS, Deadline.after(100)))
    assert len({number for number in given if isinstance(number, int)}) == len(ITEMS)
    assert [lost for lost in given if isinstance(lost, Lost)] == [
        Lost(item, "RuntimeError: CUDA error") for item in ITEMS
    ]


def test_what_hangs_is_ended_after_the_deadline() -> None:
    began = time.monotonic()
    assert found("hangs", 3.0, grace_s=1) == ["A", "begun", Lost("b", "it did not come to an end"), Left(("c", "d"))]
    assert time.monotonic() - began < 60


def test_nothing_begins_after_the_deadline() -> None:
    assert list(isolated.run(work, ITEMS, Deadline.after(-1))) == [Left(ITEMS)]


def test_several_processes_share_the_work() -> None:
    given = found("dies", num_workers=2)
    assert {item for item in given if isinstance(item, str)} == {"A", "begun", "C", "D"}
    assert [item for item in given if isinstance(item, Lost)] == [Lost("b", "its process ended with status 7")]


def test_a_process_that_never_begins_is_not_tried_again() -> None:
    given = list(isolated.run(work, ITEMS, Deadline.after(100), prepare=refuse))
    assert given == [Lost(item, "its process ended with status 1") for item in ITEMS]
