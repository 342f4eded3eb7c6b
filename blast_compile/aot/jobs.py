"""From what a model needs to what is to be compiled: one job a kernel text and target, and what cannot become one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from blast_compile.aot import tuned
from blast_compile.aot.needs import Need
from blast_compile.base.errors import TargetError
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.cpp.families import family_of
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton import config as triton_config
from blast_compile.codegen.triton.build import LIST_KEPT
from blast_compile.codegen.triton.config import ALIGNED, TritonConfig
from blast_compile.codegen.triton.fit import fit
from blast_compile.codegen.triton.generate import meets_short_blocks, triton_source
from blast_compile.kernels.bundles import Skipped
from blast_compile.kernels.gpu import find as gpu_kernels
from blast_compile.kernels.plans.record import Record
from blast_compile.masks import layout


@dataclass(frozen=True)
class Job:
    """One kernel to be compiled.

    tokens: the numbers of tokens it is for: those asked for or, with a tuned config, those it was tuned for.
    is_uneven, is_ragged, is_transposed: as in `triton_cross`; false on CPUs, whose kernels read sizes and strides when
    they run. helper: one of the kernel's in place of the kernel, for any number of tokens.
    """

    spec: Spec
    config: CpuConfig | TritonConfig
    source: str
    tokens: tuple[int, ...]
    is_uneven: bool = False
    is_ragged: bool = False
    is_transposed: bool = False
    helper: str | None = None

    @property
    def is_cpu(self) -> bool:
        """Whether a C++ compiler makes it."""
        return self.spec.target.startswith("cpu:")

    @property
    def sizes(self) -> dict[str, bool]:
        """What `cross_compile` is told of the sizes and strides of launches."""
        return {"is_uneven": self.is_uneven, "is_ragged": self.is_ragged, "is_transposed": self.is_transposed}


def plan_jobs(
    needs: Iterable[Need], targets: Sequence[str], tokens: Sequence[int], records: Sequence[Record] = ()
) -> tuple[list[Job], list[Skipped]]:
    """Every job once, those of one target together, in the order of `needs`; default configs before tuned ones."""
    jobs: dict[Job, tuple[int, ...]] = {}
    skipped: dict[Skipped, None] = {}
    for target in targets:
        for need in needs:
            spec = need.spec_on(target)
            if isinstance(spec, str):
                skipped[Skipped(need.what, target, spec)] = None
                continue
            try:
                for job in _jobs_of(need, spec, tokens, records):
                    key = replace(job, tokens=())
                    jobs[key] = tuple(sorted({*jobs.get(key, ()), *job.tokens}))
            except TargetError as error:
                skipped[Skipped(spec.summary, target, str(error))] = None
    return [replace(job, tokens=counts) for job, counts in jobs.items()], list(skipped)


def _jobs_of(need: Need, spec: Spec, tokens: Sequence[int], records: Sequence[Record]) -> Iterable[Job]:
    if spec.target.startswith("cpu:"):
        family = family_of(spec)
        if reason := family.why_none(spec):
            raise TargetError(f"{reason} on CPUs")
        counts = {family.default_config(spec): tuple(tokens)}
        counts = counts | tuned.configs(records, spec) | counts  # the default first, and for whatever was asked
        return [Job(spec, config, family.generate(spec, config), each) for config, each in counts.items()]
    steps = gpu_kernels.steps(spec)
    made = [_gpu_job(need, step, step is not steps[0], count) for step in steps for count in tokens]
    return [*made, *(_listing(job) for job in made if job.spec.layout == "masked")]


def _listing(job: Job) -> Job:
    """What lists the kept blocks of masks beside a kernel: one binary for masks of every size."""
    return Job(job.spec, job.config, job.source, (), helper=LIST_KEPT)


def _gpu_job(need: Need, step: Spec, is_last: bool, tokens: int) -> Job:
    """At the config that the runtime would choose for such a layer."""
    call, bucket = need.call, gpu_kernels.bucket(tokens)
    shape = (call.sizes[-1], call.sizes[0]) if is_last else (call.sizes[0], call.x.shape[-1])
    is_ragged = any(size % ALIGNED for size in shape)
    untuned = triton_config.default_config(step, bucket, is_ragged=is_ragged)
    config = fit(step, untuned, bucket, layout.grid(shape, step.block))
    source = triton_source(step, config)
    is_uneven = meets_short_blocks(step, shape) and not is_ragged
    return Job(step, config, source, (tokens,), is_uneven, is_ragged, need.is_transposed)
