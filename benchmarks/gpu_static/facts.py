"""What is kept of a compiled kernel: the numbers that expectations and reports show."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.gpu_static.variants import Variant
from blast_compile.base.errors import BuildError
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.cross import CompiledKernel, cross_compile


@dataclass(frozen=True)
class Facts:
    """The numbers of one kernel.

    registers, spills: a lane. shared: bytes of one program. programs: on one multiprocessor; warps: theirs, in percent
    of those that it can run. limit: what is used up first. cores: the kind of tensor-core instruction, "" for none.
    wide: percent of what the inner loop loads from global memory that comes 16 bytes at a time; 100 where a copy engine
    loads. loop: its instructions. products: those of them that multiply and add.
    """

    registers: int
    spills: int
    shared: int
    programs: int
    warps: int
    limit: str
    cores: str
    wide: int
    loop: int
    products: int

    @classmethod
    def of(cls, compiled: CompiledKernel) -> Facts:
        """Those of a compiled kernel."""
        occupancy, loop = compiled.occupancy, compiled.loop
        counts = {
            "tcgen05": compiled.num_tcgen05,
            "wgmma": compiled.num_wgmma,
            "mma": compiled.num_mma,
            "mfma": compiled.num_mfma,
        }
        return cls(
            registers=compiled.registers,
            spills=compiled.num_spills,
            shared=compiled.shared_bytes,
            programs=occupancy.programs,
            warps=round(100 * occupancy.warps_frac),
            limit=occupancy.limit,
            cores=next((kind for kind, count in counts.items() if count), ""),
            wide=round(100 * loop.wide_frac) if loop.load_bytes else 100,
            loop=loop.instructions,
            products=loop.tensor_core or loop.other_math,
        )


Outcome = Facts | str
"""What came out of a compiler, or why nothing did."""


def measure(variants: Sequence[Variant], jobs: int) -> Iterator[tuple[Variant, Outcome]]:
    """Compiles them in processes side by side; in the order of `variants`."""
    with (
        tempfile.TemporaryDirectory(prefix="blast-gpu-static-") as folder,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool,
    ):
        yield from zip(variants, pool.map(partial(_compile, Path(folder)), variants, chunksize=4), strict=True)


def _compile(folder: Path, variant: Variant) -> Outcome:
    kernel = load_kernel(variant.spec, variant.config, folder)
    settings = {name: value for name, value in vars(variant).items() if name.startswith("is_")}
    try:
        return Facts.of(cross_compile(kernel, helper=variant.helper, **settings))
    except BuildError as error:
        return f"does not compile: {str(error).splitlines()[0][:200]}"
