"""Which cases the kernels of each instruction set are tried on; tests that sweep them share the compiled kernels."""

from __future__ import annotations

import torch

from blast_compile.base import compat
from blast_compile.base.env import Isa
from tests.covering import cover
from tests.op_cases import ACTIVATIONS, DTYPES, FORMS, KERNEL_BLOCKS, OPS, Case

BEST = compat.runnable_isas()[-1]
BOTH = (True, False)
# Every pair of values meets in some case. Slower instruction sets share most of the generator: each value is met once.
_PAIRS = cover(
    2, op=OPS, dtype=DTYPES, block=KERNEL_BLOCKS, form=FORMS, activation=ACTIVATIONS[1:], bias=BOTH, residual=BOTH
)
_VALUES = cover(
    1, op=OPS, dtype=DTYPES, block=((32, 32), (13, 17), (64, 32)), form=FORMS, activation=ACTIVATIONS, bias=BOTH
)
FORWARD: list[tuple[Isa, Case]] = [
    (isa, case) for isa in compat.runnable_isas() for case in (_PAIRS if isa == BEST else _VALUES)
]

# The kernels of a gradient depend on dtype, block and form of weight alone.
_GRADIENTS = [
    Case("linear", torch.float32, (13, 17), "packed"),
    Case("linear", torch.bfloat16, (13, 17), "masked"),
    Case("linear", torch.float16, (13, 17), "packed"),
]
GRADIENTS: list[tuple[Isa, Case]] = [
    (isa, case)
    for isa in compat.runnable_isas()
    for case in (cover(1, dtype=DTYPES, block=KERNEL_BLOCKS, form=FORMS) if isa == BEST else _GRADIENTS)
]
