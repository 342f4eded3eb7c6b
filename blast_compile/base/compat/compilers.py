"""Dynamo, Inductor and other delegates: what they compile, and what they leave alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.fx import GraphModule

T = TypeVar("T")


def compile_with(
    delegate: str, gm: GraphModule, example_inputs: Sequence[object], mode: str | None = None
) -> Callable[..., object]:
    """What a delegate makes of a graph, unwrapped; Inductor works under the settings of a `mode` of `torch.compile`.

    `compile_fx`, `lookup_backend` and the settings of Inductor: run 2.13, read 2.11.
    """
    inputs = cast(list[Tensor], example_inputs)  # of which some may be ints and SymInts
    if delegate == "inductor":
        from torch._inductor import config  # slow to import
        from torch._inductor.compile_fx import compile_fx

        patches = torch._inductor.list_mode_options(mode) if mode else {}
        if config.freezing:  # would write an index of up to 8 entries into its code, where edits never arrive
            patches["always_keep_tensor_constants"] = True
        return cast(Callable[..., object], compile_fx(gm, inputs, config_patches=patches))
    from torch._dynamo.backends.registry import lookup_backend

    return lookup_backend(delegate)(gm, inputs)


def can_inductor_compile_for_cpu() -> bool:
    """Whether Inductor finds a C++ compiler, by its own settings, that can be executed.

    `torch._inductor.cpp_builder.get_cpp_compiler`: run 2.13, read 2.11.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except (InvalidCxxCompiler, OSError):
        return False
    return True


def frozen_weights() -> AbstractContextManager[None]:
    """Lets Inductor lay out the weights of what is compiled under no_grad inside the block, once and for all.

    `torch._inductor.config.freezing`: run 2.13, read 2.11.
    """
    from torch._inductor import config  # slow to import

    return cast(AbstractContextManager[None], config.patch(freezing=True))


def outside_dynamo(function: Callable[..., T]) -> Callable[..., T]:
    """`function`, such that Dynamo leaves its frames alone where an op runs under it, as behind a graph break.

    `torch._dynamo.disable`: run 2.13, read 2.11.
    """
    if "torch._dynamo" not in sys.modules:  # slow to import, and without it nobody traces
        return function
    disabled: Callable[..., T] = torch._dynamo.disable(function)  # type: ignore[no-untyped-call]
    return disabled
