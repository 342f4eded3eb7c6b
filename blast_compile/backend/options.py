"""The options of the backend: `torch.compile(model, backend="blast", options={...})`."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

from blast_compile.base.errors import OptionsError

Delegate = Literal["inductor", "aot_eager", "eager"]
Fallback = Literal["dense", "error"]
Tune = Literal["off", "on-miss", "full"]
Attention = Literal["exact", "keep"]


@dataclass(frozen=True)
class BackendOptions:
    """Validated options; equal options mean equal graphs.

    delegate: what compiles the graph once our operators are in it.
    fallback: what a failure of a rewrite does: `"dense"` compiles the original graph, warning once; `"error"` raises.
    bundle: the folder of a bundle whose kernels serve the process from now on; compiling is for what it lacks.
    tune: `"off"` uses the plans there are; `"on-miss"` also measures, while a graph is compiled, what has none for its
    number of tokens; `"full"` measures everything anew.
    attention: `"exact"` computes attention by our operator where it is faster and the same for all inputs; `"keep"`
    leaves it to torch.
    config: a `CpuConfig`, or its text, for every sparse op of the graph, whatever the plans say; fields that the text
    leaves out are as in the default of each op.
    """

    delegate: Delegate = "inductor"
    fallback: Fallback = "dense"
    bundle: str | os.PathLike[str] | None = None
    tune: Tune = "off"
    config: object = None
    attention: Attention = "exact"

    def __post_init__(self) -> None:
        """Rejects values that are not among the good ones with an `OptionsError`."""
        for name, good in _GOOD.items():
            value = getattr(self, name)
            if value not in good:
                raise OptionsError(f"expected option {name!r} to be one of {', '.join(good)}, got {value!r}")
        if self.bundle is not None and not isinstance(self.bundle, str | os.PathLike):
            raise OptionsError(f"expected the folder of a bundle as option 'bundle', got {self.bundle!r}")

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> BackendOptions:
        """From the `options` of `torch.compile`; unknown names are an `OptionsError` that lists the known ones."""
        known = [field.name for field in fields(cls)]
        for name in options or {}:
            if name not in known:
                close = difflib.get_close_matches(str(name), known, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise OptionsError(f"expected options among {', '.join(known)}, got {name!r}{hint}")
        return replace(cls(), **dict(options or {}))


_GOOD: dict[str, tuple[str, ...]] = {
    "delegate": get_args(Delegate),
    "fallback": get_args(Fallback),
    "tune": get_args(Tune),
    "attention": get_args(Attention),
}
