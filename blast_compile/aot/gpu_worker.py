"""A process that compiles Triton kernels: one job a line of JSON in, one result a line out, until the input ends.

Processes, not threads: Triton's compiler holds the GIL, and LLVM may end a process that it runs in.
"""

from __future__ import annotations

import base64
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from blast_compile.base import folders
from blast_compile.base.errors import BlastError
from blast_compile.codegen.spec_text import read_spec
from blast_compile.codegen.triton.build import load_kernel
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.codegen.triton.cross import CompiledKernel, Variant, cross_compile


def main(lines: TextIO, results: TextIO) -> None:
    """Answers every job."""
    with tempfile.TemporaryDirectory(prefix="blast-", dir=folders.private_folder()) as folder:
        for line in lines:
            results.write(json.dumps(_answer(json.loads(line), Path(folder))) + "\n")
            results.flush()


def _answer(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        kernel = load_kernel(read_spec(job["spec"]), TritonConfig(**job["config"]), folder)
        compiled = cross_compile(kernel, Variant(helper=job["helper"], **job["sizes"]))
    except BlastError as error:
        return {"error": str(error)}
    return _plain(compiled)


def _plain(compiled: CompiledKernel) -> dict[str, Any]:
    """Every field of what came out, the binary as text, and the occupancy."""
    binary = base64.b64encode(compiled.binary).decode()
    return asdict(compiled) | {"binary": binary, "occupancy": asdict(compiled.occupancy)}


if __name__ == "__main__":
    # What Triton and LLVM print belongs to the errors.
    answers = sys.stdout
    sys.stdout = sys.stderr
    main(sys.stdin, answers)
