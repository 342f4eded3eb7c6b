"""`package`: a whole model for CPUs in one folder, which runs without this package, or without Python at all.

The folder is a bundle with two more files: `model.pt2`, the model compiled by AOTInductor, weights and masks inside,
and `libblast_ops.so`, the operators with the model's kernels on torch's stable ABI (`ops.cpp`).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blast_compile.aot import stable_ops
from blast_compile.aot.build_report import BuildReport
from blast_compile.aot.builder import Request, make
from blast_compile.aot.jobs import Job
from blast_compile.aot.needs import needs_of_graph
from blast_compile.aot.targets import names_of
from blast_compile.backend.bundle import use_bundle
from blast_compile.backend.export import export, fuse_
from blast_compile.base import folders
from blast_compile.base.errors import BuildError, BundleError, TargetError
from blast_compile.base.models import Inputs, arguments_of
from blast_compile.kernels.bundles import Bundle

MODEL, LIBRARY = "model.pt2", "libblast_ops.so"


def package(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    out: str | os.PathLike[str],
    dynamic_shapes: Any = None,
    targets: str | Sequence[str] = ("cpu",),
    jobs: int | None = None,
    inductor_configs: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> BuildReport:
    """Exports a model, fuses and compiles it, and writes the folder `out` for its deployment; the model stays as it is.

    example_inputs, dynamic_shapes: as `torch.export.export` takes them, an only argument and keyword arguments too.
    Results in a class of another library, such as those of transformers, become a tuple of tensors.
    targets: CPUs alone; what is not sparse is compiled by Inductor for this machine, whatever they are.
    inductor_configs: as of `aoti_compile_and_package`.

    Raises what `torch.export` raises where the model cannot be exported, `BuildError` where a sparse layer has no
    kernel, `TargetError` on a target that is no CPU, and else as `build` does; `out` is then as it was.
    """
    args, kwargs = arguments_of(example_inputs)
    names = names_of(targets)
    if others := [name for name in names if not name.startswith("cpu")]:
        raise TargetError(
            f"expected CPUs as targets of a package, got {', '.join(others)}; use build for other devices"
        )
    with torch.no_grad(), tempfile.TemporaryDirectory(prefix="blast-", dir=folders.private_folder()) as folder:
        program = fuse_(export(model, args, kwargs, dynamic_shapes))
        found = list(needs_of_graph(program.graph_module))

        def more(made: Sequence[Job]) -> Mapping[str, bytes | Path]:
            _check_all_made({need.spec_on(job.spec.target) for job in made for need in found}, made)
            request.progress("the operators on torch's stable ABI")
            library = stable_ops.link(made, request.workers)
            request.progress("the rest of the model, by AOTInductor")
            path = torch._inductor.aoti_compile_and_package(
                program, package_path=str(Path(folder, MODEL)), inductor_configs=dict(inductor_configs or {})
            )
            return {MODEL: Path(path), LIBRARY: library}

        request = Request(names, Path(out), (1,), jobs, progress)
        return make(lambda: found, request, more)


def load_package(folder: str | os.PathLike[str]) -> Callable[..., Any]:
    """The model of a folder that `package` wrote, ready to be called, on the folder's kernels.

    Raises `BundleError` as `Bundle.open` does, and where the folder holds no model.
    """
    root = Bundle.open(folder).folder
    if not (root / MODEL).exists():
        raise BundleError(f"expected a bundle with a model, got {root} without {MODEL}; make one by aot.package")
    use_bundle(root)
    import blast_compile.ops  # noqa: F401 - the loader looks the operators up by name

    run: Callable[..., Any] = torch._inductor.aoti_load_package(str(root / MODEL))
    return run


def _check_all_made(specs: set[Any], made: Sequence[Job]) -> None:
    missing = specs - {job.spec for job in made}
    if missing:
        raise BuildError(f"expected a kernel for every sparse layer of a package, got none for {missing.pop()}")
