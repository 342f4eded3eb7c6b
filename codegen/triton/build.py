"""Makes something callable of generated Triton.

Triton is imported when a function here is called, so that the package works without it. Of Triton's own settings,
`triton.knobs.runtime.interpret` is read (run on 3.7.1).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from blast_compile.base.errors import TargetError
from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton.config import LIST_WARPS, TritonConfig
from blast_compile.codegen.triton.generate import triton_source

LIST_KEPT = "list_kept"
HELPERS = ("reduce", "block_norms", LIST_KEPT)


@dataclass(frozen=True, eq=False)
class TritonKernel:
    """A generated kernel, loaded.

    function: what `triton.jit` made of it. helpers: further entry points of the file by name: `reduce` where a product
    is split, `block_norms` beside a weight gradient, `list_kept` where weights are masked. is_interpreted: it runs on
    CPU tensors, slowly.
    """

    spec: Spec
    config: TritonConfig
    path: Path
    function: Any
    helpers: Mapping[str, Any]
    is_interpreted: bool

    def entry(self, helper: str | None = None) -> tuple[Any, dict[str, int]]:
        """The kernel or one of its helpers, and Triton's launch options of it."""
        function = self.helpers[helper] if helper else self.function
        num_warps = LIST_WARPS if helper == LIST_KEPT else self.config.num_warps
        return function, {"num_warps": num_warps, "num_stages": self.config.num_stages}


def import_triton() -> Any:
    """Triton, or a `TargetError` that says how to get it."""
    try:
        import triton
    except ImportError as error:
        raise TargetError(
            f"expected Triton, which GPU kernels need, got {error}; pip install 'blast-compile[gpu]', or run on the CPU"
        ) from error
    return triton


def load_kernel(spec: Spec, config: TritonConfig, folder: Path) -> TritonKernel:
    """Generates the kernel, writes it into `folder` under the hash of its text, and loads it.

    Triton decides here whether it will compile or interpret it. For the interpreter, a process must set
    `TRITON_INTERPRET=1` before it first imports Triton. Raises `TargetError` without Triton.
    """
    triton = import_triton()
    source = triton_source(spec, config)
    path = _write_once(source, folder)
    module = ModuleType(path.stem)
    exec(compile(source, path, "exec"), module.__dict__)
    helpers = {name: getattr(module, name) for name in HELPERS if hasattr(module, name)}
    return TritonKernel(spec, config, path, getattr(module, spec.op), helpers, triton.knobs.runtime.interpret)


def file_name(source: str) -> str:
    """What the file of a generated kernel is called."""
    return f"blast_{hashlib.sha256(source.encode()).hexdigest()[:32]}.py"


def _write_once(source: str, folder: Path) -> Path:
    """A file appears whole or not at all; Triton reads it back to compile."""
    path = folder / file_name(source)
    if not path.exists() or path.read_text() != source:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".tmp", delete=False) as file:
            file.write(source)
        Path(file.name).replace(path)
    return path
