"""What is kept of a compiled kernel: the numbers that expectations and reports show."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from benchmarks.gpu_static.variants import Variant
from blast_compile.base.errors import BuildError
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.cross import CompiledKernel, cross_compile, digest
from blast_compile.codegen.triton.cross import Variant as Entry


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


class Measured(NamedTuple):
    """source: the digest of what the compiler is given. is_new: it was asked now; else this is what it said before."""

    source: str
    outcome: Outcome
    is_new: bool = True


def measure(
    variants: Sequence[Variant], jobs: int, known: Mapping[str, Measured] = MappingProxyType({}), again: int = 1
) -> Iterator[tuple[Variant, Measured]]:
    """Compiles them in processes side by side; in the order of `variants`.

    known: what came out before, by name. It is compiled anew where what the compiler is given differs, and every
    `again`-th one anyway.
    """
    before = [None if i % again == 0 else known.get(variant.name) for i, variant in enumerate(variants)]
    with (
        tempfile.TemporaryDirectory(prefix="blast-gpu-static-") as folder,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool,
    ):
        found = pool.map(partial(_compile, Path(folder)), variants, before, chunksize=4)
        yield from zip(variants, found, strict=True)


def _compile(folder: Path, variant: Variant, before: Measured | None) -> Measured:
    kernel = load_kernel(variant.spec, variant.config, folder)
    entry = Entry(**{name: getattr(variant, name) for name in Entry._fields})
    source = digest(kernel, entry)
    if before is not None and before.source == source:
        return before
    try:
        return Measured(source, Facts.of(cross_compile(kernel, entry)))
    except BuildError as error:
        return Measured(source, f"does not compile: {str(error).splitlines()[0][:200]}")
