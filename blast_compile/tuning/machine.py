"""The CPU that runs as a `Device`: measured once a process and number of threads; the best is kept beside the plans."""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import get_args

from blast_compile.base import folders
from blast_compile.base.errors import BuildError
from blast_compile.base.log import logger
from blast_compile.base.processor import cpu_target, device_name, l2_bytes, l3_bytes
from blast_compile.codegen.spec import Dtype
from blast_compile.kernels.plans.record import digest
from blast_compile.tuning import measure_machine
from blast_compile.tuning.devices import Device

# Where nothing can be measured: a core of 2015. It ranks configurations as well as any other figure would.
_UNMEASURED_RATE, _UNMEASURED_BANDWIDTH = 5e10, 1e10
_MEASURED = "measured"  # as the source of figures


def this_cpu(threads: int) -> Device:
    """What this machine reaches with `threads`: measured now, in about a second, or earlier where that was better.

    Other work slows a measurement down and nothing speeds it up, so the best of all counts.
    """
    return _this_cpu(device_name(), threads)


@cache
def _this_cpu(name: str, threads: int) -> Device:
    device, known = _measured(name, threads), None
    with suppress(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError):
        known = _device(json.loads(folders.read_regular(_path(name, threads))), name)
        if known.source == _MEASURED:
            device = device.or_better(known) if device.source == _MEASURED else known
    if device == known:
        return device
    with suppress(OSError):  # it is measured again where it cannot be kept
        path = _path(name, threads)
        folders.open_trusted(path.parent.parent)
        folders.open_trusted(path.parent)
        folders.replace_durably(path, json.dumps(asdict(device), indent=1).encode())
    return device


def _measured(name: str, threads: int) -> Device:
    caches, memory = (l2_bytes(), l3_bytes()), os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        rates = {dtype: measure_machine.rate(dtype, threads) for dtype in get_args(Dtype)}
        bandwidth, source = measure_machine.bandwidth(threads), _MEASURED
    except (BuildError, OSError) as error:
        logger.info("the machine is not measured: %s", error)
        rates = dict.fromkeys(get_args(Dtype), threads * _UNMEASURED_RATE)
        bandwidth, source = _UNMEASURED_BANDWIDTH, "guessed: nothing can be compiled here"
    return Device(name, cpu_target(), bandwidth, rates, caches, threads, memory, source)


def _device(value: dict[str, object], name: str) -> Device:
    """From a file; anything odd raises, and is measured anew."""
    rates, caches = value["rates"], value["caches"]
    if value["name"] != name or not isinstance(rates, dict) or not isinstance(caches, list):
        raise ValueError("another machine's")
    numbers = [value["bandwidth"], *(rates[dtype] for dtype in get_args(Dtype)), *caches]
    if not all(isinstance(number, float | int) and 0 < number < math.inf for number in numbers):
        raise ValueError("no figures of a machine")
    return Device(**{**value, "caches": tuple(caches)})  # type: ignore[arg-type]


def _path(name: str, threads: int) -> Path:
    return _folder() / f"machine-{digest(name, threads)}.json"


def _folder() -> Path:
    return folders.cache_root() / "plans"
