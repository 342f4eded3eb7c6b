"""What Dynamo calls the inputs of a graph, which of their sizes it takes to vary, and how often it compiles."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule


def fixed_inputs(gm: GraphModule, example_inputs: Sequence[object]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a graph takes and whose first size it takes to be fixed, by the source that Dynamo gave them.

    Dynamo hands real tensors to a backend, and the parameters and buffers of a model themselves: `Node._dynamo_source`
    and its `name`: run 2.13, read 2.11.
    """
    for node, value in zip(gm.graph.find_nodes(op="placeholder"), example_inputs, strict=False):
        source, fake = getattr(node, "_dynamo_source", None), node.meta.get("example_value")
        if source is None or not isinstance(value, Tensor) or not isinstance(fake, Tensor) or not fake.dim():
            continue
        if isinstance(fake.shape[0], int):
            yield str(source.name() if callable(source.name) else source.name), value


def let_first_size_vary(sources: Iterable[str], instead_of: str = "") -> str:
    """Tells Dynamo that the first size of tensors from these sources varies; returns what it was told, maybe nothing.

    What was told before and is given as `instead_of` goes, what the user told stays. Sources are compared as a whole,
    within one expression: Dynamo looks it up for every size of every input of every graph.

    `torch.compiler.config.dynamic_sources`, comma delimited, of entries `expression:dim`: run 2.13. Where Dynamo takes
    no `dim` yet, as 2.11 seems not to, all sizes vary, and the code that is compiled serves the same tensors.
    """
    from torch._dynamo.variables import builder  # slow to import, needed while tracing only

    config: Any = torch.compiler.config
    entries = [entry for entry in config.dynamic_sources.split(",") if entry and entry != instead_of]
    expressions = "|".join(sorted(map(_expression, sources)))
    first = ":0" if "dim" in inspect.signature(builder.is_dynamic_source).parameters else ""
    told = f"(?:{expressions})${first}" if expressions else ""
    config.dynamic_sources = ",".join([*entries, told] if told else entries)
    return told


def is_told(entry: str) -> bool:
    """Whether Dynamo still knows what `let_first_size_vary` told it: anyone may set the configuration."""
    config: Any = torch.compiler.config
    return bool(entry) and entry in config.dynamic_sources.split(",")


def compiled_function() -> tuple[int, str, int] | None:
    """The function that Dynamo compiles now: its number, the name of this compilation, and how many more there may be.

    None outside of Dynamo. Dynamo counts attempts, and some do not take a place: there may be more than it says.
    `torch._guards.CompileContext.current_compile_id`: run 2.13, read 2.11.
    """
    compile_id = torch._guards.CompileContext.current_compile_id()
    if compile_id is None or compile_id.frame_id is None or compile_id.frame_compile_id is None:
        return None
    limit: int = torch._dynamo.config.recompile_limit
    return compile_id.frame_id, str(compile_id), limit - 1 - compile_id.frame_compile_id


def _expression(source: str) -> str:
    """Matches a source as a whole; Dynamo takes spaces out of expressions, and cuts them at commas."""
    return re.sub(r"\\?[\s,]", ".", re.escape(source))
