"""The ops on CPU tensors by the path of a GPU, in Triton's interpreter: how that path is tested without a GPU.

For tests alone: it is slow, and it lasts for the rest of the process. `TRITON_INTERPRET=1` must be set before Triton is
first imported, and `BLAST_NATIVE=0` keeps the launcher in C++ from serving the calls instead.
"""

from __future__ import annotations

from torch.library import Library

from blast_compile.base.errors import TargetError
from blast_compile.codegen.triton.build import import_triton
from blast_compile.kernels.gpu import device
from blast_compile.kernels.launcher import launcher
from blast_compile.ops import planning, register

_library: Library | None = None


def serve_cpu_tensors(target: str = "cuda:sm_90") -> None:
    """From now on, the ops take CPU tensors for those of a GPU of `target`; raises `TargetError` where they cannot."""
    global _library
    if not import_triton().knobs.runtime.interpret:
        raise TargetError("expected Triton's interpreter, got its compiler; set TRITON_INTERPRET=1 before all imports")
    if launcher.is_loaded():
        raise TargetError("expected the ops in Python, got those in C++; set BLAST_NATIVE=0 before all imports")
    if _library is None:
        _library = Library("blast", "IMPL")  # type: ignore[no-untyped-call]
        for op in register.OPS:
            for name in (op.name, f"{op.name}.nograd") if op.formula else (op.name,):
                _library.impl(name, op.gpu, "CPU")  # type: ignore[no-untyped-call]
    device.interpret_as(target)
    planning.forget()
