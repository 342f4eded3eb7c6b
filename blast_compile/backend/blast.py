"""The backend of `torch.compile(model, backend="blast")`: graph in, callable out, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from blast_compile import passes
from blast_compile.backend import sizes
from blast_compile.backend.bundle import use_bundle
from blast_compile.backend.options import BackendOptions
from blast_compile.backend.prepare import preparing, tune_graph
from blast_compile.base import compat
from blast_compile.base.errors import RewriteError
from blast_compile.base.log import logger, warn_once
from blast_compile.kernels.plans.pinned import PinnedConfig
from blast_compile.passes.pin_config import pin_config


def blast(
    gm: GraphModule,
    example_inputs: Sequence[object],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., object]:
    """Rewrites a Dynamo graph with fused block-sparse ops and hands it to the delegate.

    mode: that of `torch.compile`, for Inductor. options: the fields of `BackendOptions`; others are an `OptionsError`.
    Where a rewrite fails, the delegate gets the original graph; under `fallback="error"` that is a `RewriteError`.
    A bundle that cannot be trusted is a `BundleError`.
    """
    chosen = _runnable(BackendOptions.parse(options), example_inputs)
    if chosen.bundle is not None:
        use_bundle(chosen.bundle)
    config = None if chosen.config is None else PinnedConfig.of(chosen.config)
    if passes.has_sparse_layers(gm):
        sizes.let_sizes_vary(gm, example_inputs)
        sizes.warn_of_limit()
    elif chosen.attention == "keep" or not passes.has_attention(gm):
        logger.info(
            "no sparse layer in this graph, %s compiles it as it is; sparsify_ makes layers sparse", chosen.delegate
        )
        return compat.compile_with(chosen.delegate, gm, example_inputs, mode)
    rewritten = _rewritten(gm, chosen)
    if config is not None and rewritten is not gm:
        pin_config(rewritten, config)
    elif chosen.tune != "off":
        tune_graph(rewritten, example_inputs, again=chosen.tune == "full")
    with preparing(rewritten):
        return compat.compile_with(chosen.delegate, rewritten, example_inputs, mode)


def _runnable(options: BackendOptions, example_inputs: Sequence[object]) -> BackendOptions:
    """With a delegate that can compile for these inputs; under `fallback="error"` Inductor speaks for itself."""
    on_cpu = any(isinstance(value, Tensor) and value.is_cpu for value in example_inputs)
    if options.delegate != "inductor" or options.fallback == "error" or not on_cpu:
        return options
    if compat.can_inductor_compile_for_cpu():
        return options
    warn_once(
        "no C++ compiler", "Inductor finds no C++ compiler: graphs run by aot_eager, slowly but right; install g++"
    )
    return replace(options, delegate="aot_eager")


def _rewritten(gm: GraphModule, options: BackendOptions) -> GraphModule:
    """A rewritten copy; Dynamo and the fallback need the original."""
    copied = compat.copy_graph_module(gm)
    try:
        passes.rewrite(copied, passes.passes_for(attention=options.attention == "exact"))
    except RewriteError as error:
        if options.fallback == "error":
            raise
        warn_once(("rewrite", str(error)), f"the graph is compiled without fused sparse ops: {error}")
        return gm
    return copied
