"""Runs a test's work in several processes that talk over gloo."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

NUM_RANKS = 2


def on_ranks(work: Callable[[int], None], folder: Path) -> None:
    """Runs `work(rank)` in two processes of one group; a failure of either is the test's."""
    arguments = (work, f"file://{folder / 'meeting'}")
    start_processes(_enter, args=arguments, nprocs=NUM_RANKS, start_method="spawn")  # type: ignore[no-untyped-call]


def _enter(rank: int, work: Callable[[int], None], meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=NUM_RANKS)
    work(rank)
    gc.collect()  # a DDP reducer that outlives its group waits, with the GIL, for a thread that needs it (torch 2.13)
    dist.destroy_process_group()
