"""Links `ops.cpp` and the kernels of a model into one shared object: the operators for processes without Python."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blast_compile.aot.jobs import Job
from blast_compile.base.env import ISAS
from blast_compile.base.errors import BuildError
from blast_compile.codegen.cpp import build
from blast_compile.codegen.family import FORWARD, Product
from blast_compile.codegen.spec import Spec
from blast_compile.kernels import shared_objects
from blast_compile.kernels.launcher import launcher

_SOURCE = Path(__file__).with_name("ops.cpp")
_TARGET_VERSION = "0x020b000000000000"  # the oldest torch that the package runs with, 2.11

_CPP_TYPES = {
    "Tensor": "const Tensor&",
    "Tensor?": "const MaybeTensor&",
    "SymInt": "int64_t",
    "int": "int64_t",
    "int[2]": "const Sizes&",
    "str": "const std::string&",
}

_TABLE = """\
#pragma once
#include <cstdint>

{declarations}

namespace blast {{

using Kernel = int (*)(const int64_t*);
struct Entry {{
  const char* key;
  int isa;
  Kernel run;
}};
constexpr Entry ENTRIES[] = {{
{entries}
}};
constexpr const char* SCHEMAS[] = {{
{schemas}
}};

}}  // namespace blast
"""


def link(jobs: Sequence[Job], workers: int) -> bytes:
    """The shared object of the operators with these CPU kernels.

    Raises `BuildError` without a compiler, where one fails, and where no kernel is of an op that such a process has.
    """
    chosen = [job for job in _best_first(jobs) if job.spec.op in FORWARD]
    if not chosen:
        raise BuildError("expected CPU kernels of forward products, got none; build for a CPU")
    source = _SOURCE.read_text().replace('#include "kernel_table.hpp"', _table(chosen))
    source = source.replace('#include "operators.hpp"', operators())

    def compiled() -> list[Path]:
        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(_object, range(len(chosen)), chosen))

    def linked(files: list[Path]) -> bytes:
        what = "the operators on torch's stable ABI"
        return shared_objects.using(lambda: shared_objects.compiled(source, _flags(files), what), Path.read_bytes)

    return shared_objects.using(compiled, linked)


def key_of(spec: Spec) -> str:
    """What a call of the spec's op must be like, as `ops.cpp` describes it."""
    first, last = spec.epilogues[0], spec.epilogues[-1]
    biases = [first.gate_bias] * first.gate + [first.bias] + [last.bias] * (len(spec.epilogues) - 1)
    return (
        f"{spec.op} {spec.dtype} {spec.weight_dtype} {spec.block[0]}x{spec.block[1]} {first.activation} "
        f"{''.join(str(int(bias)) for bias in biases)} {'residual' if last.residual else 'alone'} {spec.layout}"
    )


def operators() -> str:
    """C++: a function for each product, with the arguments of its schema, and `implement`, which registers them."""
    functions = "\n\n".join(map(_operator, FORWARD.values()))
    names = [(op, f"{op}{overload}") for op in FORWARD for overload in ("", ".nograd")]
    lines = "\n".join(f'  library.impl("{name}", TORCH_BOX(&{op}));' for op, name in names)
    return f"{functions}\n\ntemplate <typename Library>\nvoid implement(Library& library) {{\n{lines}\n}}"


def _operator(product: Product) -> str:
    """Hands the arguments to `product` of `ops.cpp`: the operands of each layer with its `N, K`."""
    step, sizes = product.num_operands, ["x.size(-1)", *(stage.features for stage in product.stages)]
    operands = iter(argument.name for argument in product.arguments[1 : 1 + step * product.num_layers])
    layers = ", ".join(
        f"{{{', '.join([*itertools.islice(operands, step), sizes[at + 1], sizes[at]])}}}"
        for at, stage in enumerate(product.stages)
        for _ in stage.roles
    )
    taken = ", ".join(f"{_CPP_TYPES[argument.type]} {argument.name}" for argument in product.arguments)
    residual = "residual" if product.takes_residual else "std::nullopt"
    return (
        f"Tensor {product.name}({taken}) {{\n"
        f'  return product("{product.name}", x, {{{layers}}}, {residual}, block, activation);\n}}'
    )


def _best_first(jobs: Iterable[Job]) -> list[Job]:
    """One for each spec, the first: at its default config."""
    first = {job.spec: job for job in reversed([*jobs]) if job.is_cpu}
    return sorted(first.values(), key=lambda job: -_isa(job.spec))


def _isa(spec: Spec) -> int:
    return [*ISAS].index(spec.target.removeprefix("cpu:"))  # type: ignore[arg-type]


def _table(jobs: Sequence[Job]) -> str:
    return _TABLE.format(
        declarations="\n".join(f'extern "C" int {_entry(number)}(const int64_t*);' for number in range(len(jobs))),
        entries="\n".join(
            f'    {{"{key_of(job.spec)}", {_isa(job.spec)}, {_entry(number)}}},' for number, job in enumerate(jobs)
        ),
        schemas="\n".join(
            f'    "{op}{overload}{product.schema()}",'
            for op, product in FORWARD.items()
            for overload in ("", ".nograd")
        ),
    )


def _entry(number: int) -> str:
    return f"blast_run_{number}"


def _object(number: int, job: Job) -> Path:
    """A kernel as an object file, under an entry point of its own."""
    shared = build.flags(job.spec.target.removeprefix("cpu:"))
    flags = tuple("-c" if flag == "-shared" else flag for flag in shared)
    return shared_objects.compiled(
        job.source, (*flags, f"-Dblast_run={_entry(number)}"), f"a kernel to link for {job.spec}"
    )


def _flags(files: Sequence[Path]) -> tuple[str, ...]:
    of_stable_abi = ("-fvisibility=hidden", f"-DTORCH_TARGET_VERSION={_TARGET_VERSION}")
    return (*launcher.torch_flags(), *of_stable_abi, *map(str, files), "-ltorch_cpu", "-lc10")
