"""Compiles generated Triton for GPUs that are not there, and says what came out: tensor cores, registers, spills.

What is used of Triton beyond its language, all run on 3.7.1: `triton.compile`, `triton.compiler.ASTSource`,
`triton.backends.compiler.GPUTarget`, `triton.knobs` (cache folder, path of cuobjdump), `triton.errors`,
`JITFunction.arg_names` and `params`.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from blast_compile.base.errors import BuildError, TargetError
from blast_compile.codegen.dtypes import DTYPES
from blast_compile.codegen.triton import machine_code
from blast_compile.codegen.triton.build import TritonKernel, import_triton
from blast_compile.codegen.triton.generate import descriptor_tile
from blast_compile.codegen.triton.machine_code import InnerLoop
from blast_compile.codegen.triton.occupancy import Occupancy, occupancy

# Checked before Triton is asked: LLVM ends the process over an architecture that it does not know.
CUDA_ARCHITECTURES = (80, 86, 89, 90, 100, 103, 120)
_STRIDED = ("weight", "gate_weight", "up_weight", "down_weight", "out")


@dataclass(frozen=True)
class CompiledKernel:
    """What a compiler made of a kernel.

    text: PTX, or AMD assembly. binary: a cubin, or an hsaco. registers: vector registers a thread. num_spills: stores
    of registers for want of room (NVIDIA), or registers so stored (AMD). shared_bytes: of one program. tensor_columns:
    of tensor memory, of one program. num_mma, num_wgmma, num_tcgen05, num_mfma: tensor-core instructions in the text,
    NVIDIA's by generation, then AMD's. copy_bytes: the widths of asynchronous copies in the text, ascending. loop: that
    of the products, in machine code. key, metadata: under which Triton's cache keeps it, and what it says of it (JSON).
    """

    target: str
    text: str
    binary: bytes
    registers: int
    num_spills: int
    num_warps: int
    shared_bytes: int
    tensor_columns: int
    num_mma: int
    num_wgmma: int
    num_tcgen05: int
    num_mfma: int
    copy_bytes: tuple[int, ...]
    loop: InnerLoop
    key: str = ""
    metadata: str = ""

    @property
    def occupancy(self) -> Occupancy:
        """How many such programs fit on one multiprocessor."""
        return occupancy(
            self.target,
            num_warps=self.num_warps,
            registers=self.registers,
            shared_bytes=self.shared_bytes,
            tensor_columns=self.tensor_columns,
        )


class Variant(NamedTuple):
    """Which machine code of a kernel: what a launch would find out from its tensors.

    is_uneven: sizes that are no multiples of the block, but of 16. is_ragged: sizes and strides that are multiples of
    neither. is_transposed: a masked weight whose outputs are adjacent in memory, as of a `Conv1D`, or of an input
    gradient. is_wide: offsets in a tile take 64 bits. helper: one of the kernel's in place of the kernel.
    """

    is_uneven: bool = False
    is_ragged: bool = False
    is_transposed: bool = False
    is_wide: bool = False
    helper: str | None = None


USUAL = Variant()


def cross_compile(kernel: TritonKernel, variant: Variant = USUAL, *, in_cache: bool = False) -> CompiledKernel:
    """Compiles for the target in the kernel's spec, with or without such a device.

    in_cache: into the cache of Triton, where a launch finds it. Raises `BuildError` where Triton gives up.
    """
    triton = import_triton()
    source, target, options = _given(kernel, variant)
    with triton.knobs.cache.scope():
        if not in_cache:
            triton.knobs.cache.dir = str(kernel.path.parent / "triton")
        try:
            compiled = triton.compile(source, target=target, options=options)
        except (RuntimeError, triton.errors.TritonError) as error:
            raise BuildError(
                f"expected Triton to compile {kernel.path} for {kernel.spec.target}, got {error}"
            ) from error
    facts = (_cuda_facts if target.backend == "cuda" else _hip_facts)(kernel.spec.target, compiled)
    metadata = next(Path(path) for name, path in compiled.metadata_group.items() if name.endswith(".json"))
    return replace(facts, key=compiled.hash, metadata=metadata.read_text())


def digest(kernel: TritonKernel, variant: Variant) -> str:
    """Of all that Triton is given, 16 hex digits: the same version makes the same machine code of the same digest."""
    source, target, options = _given(kernel, variant)
    return hashlib.sha256(f"{source.hash()} {target} {options}".encode()).hexdigest()[:16]


def _given(kernel: TritonKernel, variant: Variant) -> tuple[Any, Any, dict[str, int]]:
    """What `triton.compile` is asked: the source with types and constants, the target, the options."""
    triton = import_triton()
    if kernel.is_interpreted:
        raise TargetError("expected a kernel to compile, got one for the interpreter; unset TRITON_INTERPRET")
    target = triton.backends.compiler.GPUTarget(*_parse_target(kernel.spec.target))
    function, options = kernel.entry(variant.helper)
    constants: dict[str, int] = {
        "RAGGED": variant.is_uneven or variant.is_ragged,
        "WIDE": variant.is_wide,
        "OUTPUTS_ADJACENT": variant.is_transposed,
        "NORMS": True,
        "INTERPRETED": False,
        "FIRST": 0,
        "LAST": 2 if kernel.config.splits > 1 else 1,  # all phases of a whole MLP
    }
    constants |= dict.fromkeys(_unit_strides(variant.is_transposed), 1)
    names = function.arg_names
    signature = {
        name: "constexpr" if name in constants else _type(name, kernel, variant.is_transposed) for name in names
    }
    constant = [i for i, name in enumerate(names) if signature[name] == "constexpr"]
    plain = [parameter.name for parameter in function.params if parameter.do_not_specialize]
    aligned = [
        i for i, name in enumerate(names) if name not in plain and _is_aligned(signature[name], variant.is_ragged)
    ]
    source = triton.compiler.ASTSource(
        function,
        signature,
        {name: value for name, value in constants.items() if name in names},
        # Constants too, as a launch describes them: so a launch finds this very binary in Triton's cache.
        {(i,): [["tt.divisibility", 16]] if i in aligned else [] for i in (*aligned, *constant)},
    )
    return source, target, options


def _parse_target(target: str) -> tuple[str, int | str, int]:
    """Triton's backend, architecture and warp size of `"cuda:sm_90"` or `"hip:gfx942"`."""
    if (match := re.fullmatch(r"cuda:sm_(\d+)", target)) and int(match[1]) in CUDA_ARCHITECTURES:
        return "cuda", int(match[1]), 32
    if match := re.fullmatch(r"hip:(gfx[0-9a-f]+)", target):
        return "hip", match[1], 64 if match[1].startswith("gfx9") else 32
    known = ", ".join(f"cuda:sm_{number}" for number in CUDA_ARCHITECTURES)
    raise TargetError(f"expected {known}, or an AMD GPU such as hip:gfx942, got {target}")


def _type(name: str, kernel: TritonKernel, is_transposed: bool) -> str:
    spec = kernel.spec
    if name.endswith("_desc"):
        rows, columns = descriptor_tile(spec, kernel.config, name, is_transposed)
        return f"tensordesc<{DTYPES[spec.dtype].triton}[{rows}, {columns}]>"
    if name.endswith(("index_ptr", "list_ptr", "order_ptr", "barrier_ptr")):
        return "*i32"
    if name in ("partial_ptr", "norms_ptr", "probe_ptr", "mask_ptr"):
        return "*fp32"
    if name.endswith(("weight_ptr", "bias_ptr")) or (name == "out_ptr" and spec.op == "weight_grad"):
        return f"*{DTYPES[spec.weight_dtype].triton}"
    return f"*{DTYPES[spec.dtype].triton}" if name.endswith("_ptr") else "i32"


def _unit_strides(is_transposed: bool) -> tuple[str, ...]:
    axis = "n" if is_transposed else "k"
    return tuple(f"{operand}_{axis}_stride" for operand in _STRIDED)


def _is_aligned(type_: str, is_ragged: bool) -> bool:
    """Tensors start at multiples of 16 bytes; sizes and strides are multiples of 16 unless ragged."""
    return type_.startswith("*") or (type_ == "i32" and not is_ragged)


def _cuda_facts(target: str, compiled: Any) -> CompiledKernel:
    text, binary = compiled.asm["ptx"], compiled.asm["cubin"]
    listing = _disassemble(binary)
    registers = re.search(r"\bREG:(\d+)", listing)
    assert registers is not None, "cuobjdump prints REG for every function"
    return CompiledKernel(
        target,
        text,
        binary,
        registers=int(registers[1]),
        num_spills=len(re.findall(r"\bSTL\b", listing)),
        num_warps=compiled.metadata.num_warps,
        shared_bytes=compiled.metadata.shared,
        tensor_columns=compiled.metadata.tmem_size,
        num_mma=text.count("mma.sync"),
        num_wgmma=text.count("wgmma.mma_async"),
        num_tcgen05=text.count("tcgen05.mma"),
        num_mfma=0,
        copy_bytes=tuple(sorted({int(width, 16) for width in re.findall(r"cp\.async\.c[ag]\..*?(0x[0-9a-f]+)", text)})),
        loop=machine_code.sass_loop(machine_code.sass(listing)),
    )


def _disassemble(cubin: bytes) -> str:
    """Machine code with its use of registers, by the cuobjdump that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [import_triton().knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _hip_facts(target: str, compiled: Any) -> CompiledKernel:
    text = compiled.asm["amdgcn"]
    values = {name: int(value) for name, value in re.findall(r"^\s*\.(\w+):\s+(\d+)$", text, re.MULTILINE)}
    return CompiledKernel(
        target,
        text,
        compiled.asm["hsaco"],
        registers=values["vgpr_count"],
        num_spills=values["vgpr_spill_count"],
        num_warps=compiled.metadata.num_warps,
        shared_bytes=compiled.metadata.shared,
        tensor_columns=0,
        num_mma=0,
        num_wgmma=0,
        num_tcgen05=0,
        num_mfma=len(re.findall(r"\bv_mfma_", text)),
        copy_bytes=(),
        loop=machine_code.amd_loop(machine_code.amd(text)),
    )
