"""`build`: the kernels that a model needs on some devices, compiled on this machine, with or without such devices."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blast_compile.aot import folder as folders
from blast_compile.aot import tuned
from blast_compile.aot.build_report import BuildReport, markdown
from blast_compile.aot.compilers import Built, compile_all
from blast_compile.aot.jobs import Job, plan_jobs
from blast_compile.aot.needs import Need, default_inputs, needs
from blast_compile.aot.targets import names_of, parse_target
from blast_compile.base import compat
from blast_compile.base.errors import BuildError, TargetError
from blast_compile.base.models import Inputs, arguments_of
from blast_compile.base.version import __version__
from blast_compile.codegen.fingerprint import fingerprint
from blast_compile.codegen.spec import Spec
from blast_compile.kernels.bundles import Artifact, Bundle, Contents, LauncherFile, Skipped
from blast_compile.kernels.launcher.launcher import source_sha256

_BINARIES = {"cpu": ("cpp", "so", ""), "cuda": ("py", "cubin", "ptx"), "hip": ("py", "hsaco", "amdgcn")}
"""Suffixes of source, binary and text by kind of device."""


def build(
    model: nn.Module,
    example_inputs: Inputs | None = None,
    *,
    targets: str | Sequence[str] = ("cpu",),
    out: str | os.PathLike[str],
    tokens: Sequence[int] = (1, 16, 512),
    jobs: int | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> BuildReport:
    """Builds a bundle for a model's inference into the folder `out`.

    example_inputs: an only argument, a tuple of arguments, or a mapping of keyword arguments; the model is captured on
    them, not run. Without them, a model of transformers is asked for its own, and of any other only the layers one by
    one are built, not what would fuse. targets: one, or several, as in `aot/targets.py`. tokens: numbers of tokens that
    GPU kernels are cut for; what tuning chose on this machine goes along too. jobs: compilers at once, as many as CPUs
    where not given. progress: told of each kernel, by any thread.

    A bundle that was in `out` is replaced at the end, in one step. What has no kernel is listed with its reason; a
    build that makes no kernel at all is a `BuildError`, and leaves `out` as it was. Raises `TargetError` on an unknown
    target, `LayerError` where no layer is sparse.
    """
    args, kwargs = arguments_of(example_inputs if example_inputs is not None else default_inputs(model))
    request = Request(names_of(targets), Path(out), tuple(tokens), jobs, progress)
    return make(lambda: needs(model, args, kwargs), request)


@dataclass(frozen=True)
class Request:
    """What `build` and `package` are asked for; fields as in `build`."""

    targets: tuple[str, ...]
    out: Path
    tokens: tuple[int, ...]
    jobs: int | None
    progress: Callable[[str], None]

    @property
    def workers(self) -> int:
        """Compilers at once."""
        return self.jobs or len(os.sched_getaffinity(0))


def make(
    find: Callable[[], Sequence[Need]],
    request: Request,
    more: Callable[[Sequence[Job]], Mapping[str, bytes | Path]] = lambda _jobs: {},
) -> BuildReport:
    """Builds the kernels of what `find` finds, and further files from the jobs that have a kernel."""
    start = time.perf_counter()
    names = list(dict.fromkeys(parse_target(name) for name in request.targets))
    if not names or not request.tokens or min(request.tokens) < 1:
        raise TargetError(f"expected targets, and numbers of tokens from 1 on, got {names} and {list(request.tokens)}")
    if not compat.has_triton() and any(not name.startswith("cpu:") for name in names):
        raise TargetError("expected Triton, which kernels for GPUs need, got none; pip install 'blast-compile[gpu]'")
    destination = folders.checked(request.out)
    found = find()
    records = tuned.chosen(spec for name in names for need in found if isinstance(spec := need.spec_on(name), Spec))
    planned, skipped = plan_jobs(found, names, request.tokens, records)
    built, launcher = compile_all(planned, request.workers, lambda done: request.progress(_line(done)))
    skipped += [Skipped(each.job.spec.summary, each.job.spec.target, each.problem) for each in built if each.problem]
    sources = {each.job.source for each in built if not each.problem and each.job.helper is None}
    usable = [each for each in built if not each.problem and each.job.source in sources]  # no helper of nothing
    if not usable:
        raise BuildError(f"expected a kernel for {', '.join(names)}, got none: {skipped[0].reason if skipped else ''}")
    made = {(each.job.spec, repr(each.job.config)) for each in usable}
    files: dict[str, bytes | Path] = {}
    files |= tuned.files(record for record in records if (record.problem.spec, record.config) in made)
    artifacts = tuple(_artifact(number, each, files) for number, each in enumerate(usable))
    contents = Contents(
        generator=fingerprint(),
        machine=platform.machine(),
        versions=_versions(),
        targets=tuple(names),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        kernels=artifacts,
        launchers=_launchers(launcher, files),
        skipped=tuple(skipped),
    )
    files["report.md"] = ("\n".join(["# Kernels", *markdown(artifacts, contents.skipped)]) + "\n").encode()
    files.update(more([each.job for each in usable]))
    size_bytes = folders.write(destination, contents, files)
    return BuildReport(Bundle.open(destination), time.perf_counter() - start, size_bytes)


def _line(built: Built) -> str:
    name = f"{built.job.spec.target} {built.job.spec.summary}"
    return f"{name}: {built.problem}" if built.problem else name


def _artifact(number: int, built: Built, files: dict[str, bytes | Path]) -> Artifact:
    """Adds the files of a kernel; a folder for each target, names that a person can tell apart."""
    spec, config = built.job.spec, built.job.config
    source, binary, text = _BINARIES[spec.target.partition(":")[0]]
    stem = f"{spec.target.replace(':', '-')}/{number:03}-{spec.op}-{spec.dtype}"
    files[f"{stem}.{source}"] = built.job.source.encode()
    files[f"{stem}.{binary}"] = built.binary
    if built.text:
        files[f"{stem}.{text}"] = built.text.encode()
    if built.metadata:
        files[f"{stem}.json"] = built.metadata.encode()
    variant = [name for name in ("ragged", "transposed") if getattr(built.job, f"is_{name}")]
    variant += [built.job.helper] if built.job.helper else []
    return Artifact(
        spec=spec,
        name=" ".join([_name(spec.target, config), *variant]),
        config=repr(config),
        tokens=built.job.tokens,
        source=f"{stem}.{source}",
        binary=f"{stem}.{binary}",
        text=f"{stem}.{text}" if built.text else "",
        metadata=f"{stem}.json" if built.metadata else "",
        facts=built.facts or {},
    )


def _name(target: str, config: Any) -> str:
    device, _, kind = target.partition(":")
    return f"{'c++' if device == 'cpu' else 'triton'} {kind} {'x'.join(map(str, astuple(config)[:2]))}"


def _launchers(launcher: bytes | None, files: dict[str, bytes | Path]) -> tuple[LauncherFile, ...]:
    """Adds the launcher of the torch that runs here."""
    if launcher is None:
        return ()
    files["launcher.so"] = launcher
    return (LauncherFile(torch.__version__, source_sha256(), "launcher.so"),)


def _versions() -> dict[str, str]:
    found = {"blast_compile": __version__, "python": platform.python_version()}
    for package in ("torch", "triton"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
