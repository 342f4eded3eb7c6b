"""What decides the text of an attention kernel: the `AttentionSpec`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from blast_compile.codegen.spec import Dtype

HeadSize = Annotated[int, range(8, 257)]


@dataclass(frozen=True)
class AttentionSpec:
    """One kernel of `blast::attention`, or of its gradient.

    dtype: of queries, keys, values and results; sums are float32. head_size, value_head_size: of queries and keys, and
    of values and results. is_listed: whether the keys of a query come from lists of blocks. has_padding: whether single
    keys may be padding. bias: the dtype of numbers that are added to the scores, or "" without. softcap: whether
    scores are bounded by a tanh. target: as in `Spec`.

    Sizes, strides, the scale, causality, windows and spans are given at run time: each bounds the keys of a query by
    two numbers, which cost nothing where no bound falls into a tile.
    """

    op: Literal["attention", "attention_grad"]
    dtype: Dtype
    head_size: HeadSize
    value_head_size: HeadSize
    is_listed: bool
    has_padding: bool
    bias: Literal["", "float32", "bfloat16", "float16"]
    softcap: bool
    target: str

    @property
    def summary(self) -> str:
        """In a few words, the target left out."""
        sizes = dict.fromkeys((self.head_size, self.value_head_size))
        flags = {"lists": self.is_listed, "padding": self.has_padding, "bias": self.bias, "softcap": self.softcap}
        kinds = [name for name, is_there in flags.items() if is_there]
        return " ".join([self.op, *kinds, self.dtype, "heads of", "x".join(map(str, sizes))])
