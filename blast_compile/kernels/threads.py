"""How many threads kernels of this process may use: torch's number, or one in a forked child."""

from __future__ import annotations

import os

import torch

num_threads = torch.get_num_threads


def _one_thread() -> int:
    return 1


def _stay_alone() -> None:
    """OpenMP's threads do not survive a fork, and waiting for them would never end: a forked child runs on one."""
    global num_threads
    num_threads = _one_thread


os.register_at_fork(after_in_child=_stay_alone)


def is_alone() -> bool:
    """Whether this process is a forked child, which has no threads but its own."""
    return num_threads is _one_thread
