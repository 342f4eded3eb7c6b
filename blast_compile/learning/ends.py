"""Names the first and last parts of a model, which are often left dense."""

from __future__ import annotations

import re

from torch import nn

from blast_compile.base.errors import OptionsError
from blast_compile.layers import targets

_NUMBERED = re.compile(r"^(?P<stack>(?:[^.]*[^.\d][^.]*\.)*?)(?P<number>\d+)(?=\.|$)")


def ends(model: nn.Module, *, first: int = 0, last: int = 0) -> list[str]:
    """Regular expressions for the `first` and `last` numbered parts of each stack, for `BlockSparse(dense=...)`.

    A stack is a list of parts such as `model.layers.0`, `model.layers.1`: encoder and decoder have their own. Parts
    without a linear layer do not count. Raises `OptionsError` on negative numbers, or where no part has a number.
    """
    if min(first, last) < 0:
        raise OptionsError(f"expected numbers of parts from 0 on, got first={first}, last={last}")
    stacks: dict[str, list[str]] = {}
    for name, _ in targets.linear_layers(model):
        if (match := _NUMBERED.match(name)) is not None:
            parts = stacks.setdefault(match["stack"], [])
            if match[0] not in parts:
                parts.append(match[0])
    if not stacks:
        raise OptionsError("expected a model with numbered parts, got none; name the layers to leave dense")
    chosen = [part for parts in stacks.values() for part in [*parts[:first], *parts[len(parts) - last :]]]
    return [rf"^{re.escape(part)}(\.|$)" for part in dict.fromkeys(chosen)]
