"""The dtypes that kernels compute in: their bytes, and their names in C++ and in Triton. Needs no torch."""

from __future__ import annotations

from typing import NamedTuple

from blast_compile.codegen.spec import Dtype


class DtypeFacts(NamedTuple):
    """num_bytes: of one number. cpp: as templates call it. triton: as Triton's signatures do."""

    num_bytes: int
    cpp: str
    triton: str


DTYPES: dict[Dtype, DtypeFacts] = {
    "float32": DtypeFacts(4, "float", "fp32"),
    "bfloat16": DtypeFacts(2, "bf16", "bf16"),
    "float16": DtypeFacts(2, "fp16", "fp16"),
}
"""By the name that torch has for each."""


def item_bytes(dtype: Dtype) -> int:
    """Bytes of one number."""
    return DTYPES[dtype].num_bytes
