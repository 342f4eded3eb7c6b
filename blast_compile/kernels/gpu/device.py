"""Which target a call runs on: its GPU, or, where tests opened that door, the interpreter of Triton on CPU tensors."""

from __future__ import annotations

import functools

import torch

_OLDEST_CUDA = 80  # Triton's tensor cores for 16 bits begin there

_interpreted: str | None = None


def target_of(device: torch.device) -> str | None:
    """`"cuda:sm_90"` or `"hip:gfx942"` of a GPU for which kernels are generated; None for any other device."""
    if device.type == "cpu":
        return _interpreted
    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    return _target_of_gpu(device.index)


def name_of(device: torch.device) -> str:
    """What tuned configs of a GPU are kept under; raises where torch sees no such GPU."""
    if device.type == "cpu":
        return f"interpreter, {_interpreted}"
    return _name_of_gpu(device.index)


def interpret_as(target: str | None) -> None:
    """Has CPU tensors count as those of a GPU of `target`; None ends it. Only tests call this."""
    global _interpreted
    _interpreted = target


@functools.cache
def _name_of_gpu(number: int) -> str:
    return f"{torch.cuda.get_device_name(number)}, {_target_of_gpu(number)}"


@functools.cache
def _target_of_gpu(number: int) -> str | None:
    if torch.version.hip is not None:
        architecture = torch.cuda.get_device_properties(number).gcnArchName.partition(":")[0]
        return f"hip:{architecture}" if architecture.startswith("gfx9") else None
    major, minor = torch.cuda.get_device_capability(number)
    return f"cuda:sm_{major}{minor}" if 10 * major + minor >= _OLDEST_CUDA else None
