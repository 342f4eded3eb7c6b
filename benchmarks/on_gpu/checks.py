"""What is verified: every op in every layout; where time is short, what tells most comes first."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch

from blast_compile.codegen.spec import Op
from blast_compile.masks.layout import Block

CheckedOp = Op | Literal["hidden_grad", "gated_hidden_grad"]
MLPS = ("mlp", "gated_mlp")
HIDDEN_GRADS = ("hidden_grad", "gated_hidden_grad")
GRADS = ("input_grad", "weight_grad", *HIDDEN_GRADS)
FORMS = ("packed", "masked", "transposed")
_SPLIT_TOKENS = 1100  # of which a weight gradient of few blocks is split
_EVEN_BLOCK = 64


@dataclass(frozen=True)
class Check:
    """One call to verify. sizes: `(K, hidden, N)`. density: of kept blocks; 0 and 1 are empty and full masks.

    is_varied: at configs that together depart from the untuned one in every way, not at the untuned one.
    """

    op: CheckedOp
    layout: str
    dtype: torch.dtype
    block: Block
    tokens: int
    sizes: tuple[int, int, int] = (200, 168, 136)
    density: float = 0.4
    is_varied: bool = False

    def __str__(self) -> str:
        """What reports call it."""
        dtype = str(self.dtype).removeprefix("torch.")
        what = f"{self.op}, {self.layout}, {dtype}, block {self.block[0]}x{self.block[1]}, {self.tokens} tokens"
        return f"{what}, sizes {self.sizes}, {self.density:.0%} kept{', varied' if self.is_varied else ''}"


def checks(dtypes: Sequence[torch.dtype], blocks: Sequence[int], tokens: Sequence[int]) -> list[Check]:
    """Every op in every layout, at odd numbers of tokens, full and empty masks, and every way to cut a kernel up.

    Ops and layouts take turns, so that the first few checks have seen each of them.
    """
    everything = (*get_args(Op), *HIDDEN_GRADS)
    groups = [_of(op, form, dtypes, blocks, tokens) for op in everything for form in FORMS]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*groups))
    return [check for check in turns if check is not None]


def _of(
    op: CheckedOp, form: str, dtypes: Sequence[torch.dtype], blocks: Sequence[int], tokens: Sequence[int]
) -> list[Check]:
    """Those of one op in one layout, mixed; after the first, what is special."""
    plain = [
        Check(op, form, dtype, (block, block), count, (5 * block // 2 + 8, 3 * block + 3, 2 * block + block // 4 + 1))
        for dtype, block, count in itertools.product(dtypes, blocks, tokens)
    ]
    random.Random(f"{op} {form}").shuffle(plain)
    first = (blocks[0], blocks[0])
    special = [Check(op, form, dtypes[0], first, tokens[-1], density=density) for density in (0.0, 1.0)]
    if op == "weight_grad":
        special.append(Check(op, form, dtypes[0], first, _SPLIT_TOKENS))
    special += [
        Check(op, form, dtypes[0], (_EVEN_BLOCK, _EVEN_BLOCK), count, (208, 200, 136), is_varied=True)
        for count in ((1,) if op in MLPS else (1, 100))
        if op not in HIDDEN_GRADS and form != "transposed"
    ]
    return [plain[0], *special, *plain[1:]]
