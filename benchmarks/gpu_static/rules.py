"""What holds for every kernel, whatever was committed: hardly a spill, wide loads, and the tensor cores of its GPU."""

from __future__ import annotations

from benchmarks.gpu_static.facts import Facts
from benchmarks.gpu_static.variants import Variant, differences
from blast_compile.codegen.family import is_mlp
from blast_compile.codegen.triton.build import LIST_KEPT
from blast_compile.codegen.triton.space import resident

_WIDE_TOKENS = 64  # wgmma and tcgen05 multiply 64 rows and more at once
_WIDE_PERCENT = 90  # the rest is an index
_WIDE_PERCENT_OF_VECTORS = 75  # and x of one token, which is read in numbers
_FEW_SPILLS = 8  # parked for the epilogue, or for offsets of 64 bits; more would be traffic in the loop


def broken(variant: Variant, facts: Facts) -> list[str]:
    """The rules that a kernel breaks."""
    found = []
    is_default = not differences(variant.config, variant.usual)
    if facts.spills > _FEW_SPILLS and is_default:
        found.append(f"a default config spills: {facts.spills} registers")
    if not facts.programs and is_default:
        found.append(f"a default config does not fit on a multiprocessor: no {facts.limit} left for one program")
    counted_on = resident(variant.spec, variant.config)
    if is_mlp(variant.spec.op) and facts.programs < counted_on:
        found.append(f"{counted_on} programs a multiprocessor wait for each other, and {facts.programs} fit")
    wanted = wanted_cores(variant)
    if facts.cores not in wanted:
        found.append(f"uses {facts.cores or 'no tensor cores'}, not {' or '.join(wanted) or 'none'}")
    percent = _WIDE_PERCENT_OF_VECTORS if variant.config.is_vector else _WIDE_PERCENT
    if is_default and not variant.is_ragged and variant.helper is None and facts.wide < percent:
        found.append(f"loads {facts.wide} % of its bytes 16 at a time, not {percent} % or more")
    return found


def wanted_cores(variant: Variant) -> tuple[str, ...]:
    """The tensor-core instructions of which a kernel should use one; "" stands for none."""
    spec, config = variant.spec, variant.config
    if config.is_vector or variant.helper in ("reduce", LIST_KEPT):
        return ("",)
    if spec.target.startswith("hip:"):
        return ("mfma",)
    if spec.dtype == "float32":
        return ("mma", "wgmma", "tcgen05") if config.precision == "tf32" else ("",)
    rows = _rows(variant)
    if spec.target == "cuda:sm_90" and rows >= _WIDE_TOKENS and config.num_warps >= 4:
        return ("wgmma",)
    if spec.target == "cuda:sm_100" and rows >= _WIDE_TOKENS and config.num_warps >= 4:
        return ("tcgen05",)
    return ("mma",)


def _rows(variant: Variant) -> int:
    """Rows of the left operand of a product."""
    config = variant.config
    if variant.spec.op == "weight_grad":
        return config.inputs * config.blocks if variant.spec.layout == "packed" else config.outputs
    return config.outputs if config.is_swapped else config.tokens
