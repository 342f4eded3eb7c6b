"""Compiles jobs, several at once, and keeps what comes out in the store, so that a build that was cut off goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from blast_compile.aot.gpu_pool import GpuPool
from blast_compile.aot.jobs import Job
from blast_compile.base.errors import BuildError, StoreError, TargetError
from blast_compile.base.log import logger
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.cpp.machine_code import cpu_facts
from blast_compile.kernels import shared_objects
from blast_compile.kernels.bundles.format import Fact
from blast_compile.kernels.launcher.launcher import shared_object

_TENSOR_CORES = ("num_mma", "num_wgmma", "num_tcgen05", "num_mfma")


@dataclass(frozen=True)
class CrossKey:
    """All that a cross-compiled Triton kernel depends on; its text opens with spec and config."""

    source_sha256: str
    target: str
    triton: str
    is_uneven: bool
    is_ragged: bool
    is_transposed: bool
    helper: str | None


@dataclass(frozen=True)
class Built:
    """What became of a job.

    text: PTX, AMD assembly, or empty. metadata: Triton's, or empty. problem: why no binary runs, or empty.
    """

    job: Job
    binary: bytes = b""
    text: str = ""
    metadata: str = ""
    facts: dict[str, Fact] | None = None
    problem: str = ""


def compile_all(jobs: Sequence[Job], workers: int, done: Callable[[Built], None]) -> tuple[list[Built], bytes | None]:
    """The results in the order of `jobs`, each also given to `done` as it comes, by any thread; the launcher.

    The launcher is for CPUs, and None without jobs for them. Where this is cut short, processes are ended, and what was
    compiled is in the store. Raises `BuildError` where the launcher does not compile.
    """
    pool = GpuPool()
    executor = ThreadPoolExecutor(workers)

    def make(job: Job) -> Built:
        built = _compiled(job, pool)
        done(built)
        return built

    try:
        # What takes longest goes first: the launcher includes torch's headers.
        has_cpu = any(job.is_cpu for job in jobs)
        launcher = executor.submit(shared_objects.using, shared_object, Path.read_bytes) if has_cpu else None
        order = sorted(range(len(jobs)), key=lambda number: jobs[number].is_cpu)
        futures = {number: executor.submit(make, jobs[number]) for number in order}
        built = [futures[number].result() for number in range(len(jobs))]
        return built, None if launcher is None else launcher.result()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
        pool.close()


def _compiled(job: Job, pool: GpuPool) -> Built:
    try:
        return _cpu(job) if job.is_cpu else _gpu(job, pool)
    except (BuildError, TargetError, StoreError) as error:
        logger.info("%s was not built: %s", job.spec, error)
        return Built(job, problem=str(error))


def _cpu(job: Job) -> Built:
    assert isinstance(job.config, CpuConfig), job

    def read(path: Path) -> Built:
        facts: dict[str, Fact] = dict(cpu_facts(path))
        return Built(job, path.read_bytes(), facts=facts)  # fails where the facts are of a file that is gone

    return shared_objects.using(partial(shared_objects.shared_object, job.spec, job.config), read)


def _gpu(job: Job, pool: GpuPool) -> Built:
    source_sha256 = hashlib.sha256(job.source.encode()).hexdigest()
    key = CrossKey(source_sha256, job.spec.target, version("triton"), **job.sizes, helper=job.helper)

    def make() -> dict[str, bytes]:
        logger.info("cross-compiling a kernel for %s", job.spec)
        compiled = pool.compile(job)
        binary = compiled.pop("binary")
        texts = {name: compiled.pop(name).encode() for name in ("text", "metadata")}
        facts = json.dumps(_numbers(compiled)).encode()
        return {"kernel.py": job.source.encode(), "binary": binary, "facts.json": facts, **texts}

    return shared_objects.using(lambda: shared_objects.open_store().get_or_make(key, make), partial(_judged, job))


def _judged(job: Job, entry: Path) -> Built:
    """Without a binary, and with the reason, where its target cannot run it."""
    facts: dict[str, Fact] = json.loads((entry / "facts.json").read_text())
    if facts["programs"] == 0:
        problem = f"not one program fits on a multiprocessor, for {facts['limited_by']}: {facts}"
        return Built(job, facts=facts, problem=problem)
    text, metadata = ((entry / name).read_text() for name in ("text", "metadata"))
    return Built(job, (entry / "binary").read_bytes(), text, metadata, facts)


def _numbers(compiled: dict[str, Any]) -> dict[str, Fact]:
    """The facts of a `CompiledKernel`, generations of tensor cores added up."""
    occupancy = compiled["occupancy"]
    facts: dict[str, Fact] = {
        "registers": compiled["registers"],
        "spills": compiled["num_spills"],
        "shared_bytes": compiled["shared_bytes"],
        "tensor_core_instructions": sum(compiled[name] for name in _TENSOR_CORES),
        "num_warps": compiled["num_warps"],
        "occupancy": round(occupancy["warps_frac"], 4),
        "programs": occupancy["programs"],
        "limited_by": occupancy["limit"],
        "key": compiled["key"],
    }
    if widths := compiled["copy_bytes"]:
        facts["copy_bytes"] = ", ".join(map(str, widths))
    return facts
