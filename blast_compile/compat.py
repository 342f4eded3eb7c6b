"""Every private API of torch and Triton that we touch, in one place, with the versions it was checked on.

"Run" names the torch version a function was executed on, "read" those whose source was compared.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction
from torch.fx import GraphModule, Node, Proxy

from blast_compile.env import ISAS, Isa

T = TypeVar("T")


@functools.cache
def cpu_isa() -> Isa:
    """The best instruction set of this machine that torch is willing to use (it honours `ATEN_CPU_CAPABILITY`).

    torch reports AVX512 for the F, BW, DQ and VL parts together, and AVX2 together with FMA.
    `torch.cpu._is_avx512_bf16_supported`: run 2.13, read 2.11.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    if capability == "AVX512":
        return "avx512_bf16" if torch.cpu._is_avx512_bf16_supported() else "avx512"
    return "avx2" if capability == "AVX2" else "portable"


def runnable_isas() -> tuple[Isa, ...]:
    """The instruction sets this machine can run, the best one last."""
    return ISAS[: ISAS.index(cpu_isa()) + 1]


def is_fake(tensor: object) -> bool:
    """Whether a tensor has no values to read: a FakeTensor, or a wrapper of one.

    `torch._subclasses.fake_tensor.is_fake`: run 2.13, read 2.11.
    """
    from torch._subclasses.fake_tensor import is_fake as torch_is_fake  # slow to import, needed while tracing only

    return torch_is_fake(tensor)


def without_autocast(device: str) -> AbstractContextManager[None]:
    """Leaves the autocast dispatch key of `device` ("cpu", "cuda") aside, for the body of an autocast kernel.

    `torch._C._ExcludeDispatchKeyGuard`, as `torch.library.register_autocast` does it: run 2.13, read 2.11.
    """
    key = getattr(torch._C.DispatchKey, "Autocast" + torch._C._dispatch_key_for_device(device))
    guard = torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(key))
    return cast(AbstractContextManager[None], guard)


def one_level_function(
    name: str, forward: Callable[..., Tensor], backward: Callable[..., tuple[Tensor | None, ...]]
) -> Callable[..., Tensor]:
    """An `autograd.Function` for an op's own Autograd kernel: it serves one level of `torch.func`, the innermost.

    The levels further out come when `forward` redispatches; a function turns differentiation off, so it is turned on
    again for them. Outside `torch.func` there are none.

    `torch.autograd.function._SingleLevelFunction`, `enable_single_level_autograd_function` and
    `torch.autograd.forward_ad._set_fwd_grad_enabled`: run 2.13, read 2.11.
    """

    def forward_for_outer_levels(ctx: object, *args: object) -> Tensor:
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            return forward(ctx, *args)

    def function(forward: Callable[..., Tensor]) -> Any:
        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(name, (_SingleLevelFunction,), members)

    plain, leveled = function(forward), function(forward_for_outer_levels)

    def apply(*args: object) -> Tensor:
        if not torch._C._are_functorch_transforms_active():
            return cast(Tensor, plain.apply(*args))
        with enable_single_level_autograd_function():
            return cast(Tensor, leveled.apply(*args))

    return apply


def redispatch_below_autograd(op: OpOverload, keyset: torch._C.DispatchKeySet, args: Sequence[object]) -> Tensor:
    """Calls `op` from its own Autograd kernel, with what the dispatcher still has to do behind it.

    `torch._C._AutoDispatchBelowAutograd`, `_after_autograd_keyset` and `OpOverload.redispatch`: run 2.13, read 2.11.
    """
    with torch._C._AutoDispatchBelowAutograd():
        y: Tensor = op.redispatch(keyset & torch._C._after_autograd_keyset, *args)
    return y


def any_requires_grad(args: Sequence[object]) -> bool:
    """Whether one of the arguments is a tensor that requires a gradient.

    `torch._C._any_requires_grad`: run 2.13, read 2.11.
    """
    return torch._C._any_requires_grad(*args)


def any_has_tangent(args: Sequence[object]) -> bool:
    """Whether forward-mode differentiation goes through one of the arguments.

    `torch.autograd.forward_ad._current_level`: run 2.13, read 2.11.
    """
    if forward_ad._current_level < 0:
        return False
    unpack: Callable[..., Any] = forward_ad.unpack_dual
    return any(isinstance(arg, Tensor) and unpack(arg).tangent is not None for arg in args)


def outside_dynamo(function: Callable[..., T]) -> Callable[..., T]:
    """`function`, such that Dynamo leaves its frames alone where an op runs under it, as behind a graph break.

    `torch._dynamo.disable`: run 2.13, read 2.11.
    """
    if "torch._dynamo" not in sys.modules:  # slow to import, and without it nobody traces
        return function
    disabled: Callable[..., T] = torch._dynamo.disable(function)  # type: ignore[no-untyped-call]
    return disabled


def has_triton() -> bool:
    """Whether Triton is installed; it is not imported here, and needs no GPU."""
    return importlib.util.find_spec("triton") is not None


def copy_graph_module(gm: GraphModule) -> GraphModule:
    """A copy of a Dynamo graph, nested graphs included, that may be edited; tensors are shared.

    Dynamo reads its own graph again after the backend returned, and AOTAutograd looks for what Dynamo noted on it:
    `_param_name_to_source`, `_source_to_user_stacks`, `_backend_id` and `Node._dynamo_source`: run 2.13, read 2.11.
    """
    graph = torch.fx.Graph()
    copies: dict[Node, Node] = {}
    for node in gm.graph.nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
        if hasattr(node, "_dynamo_source"):
            copies[node]._dynamo_source = node._dynamo_source
    copied = GraphModule(gm, graph, class_name=type(gm).__name__)
    copied.meta = dict(gm.meta)
    for name in ("_param_name_to_source", "_source_to_user_stacks", "_backend_id"):
        if hasattr(gm, name):
            setattr(copied, name, getattr(gm, name))
    for name, nested in copied.named_children():
        if isinstance(nested, GraphModule):
            setattr(copied, name, copy_graph_module(nested))
    return copied


def known_equal(left: int | torch.SymInt, right: int | torch.SymInt) -> bool:
    """Whether two sizes are equal for every input that the graph serves; asking adds no guard.

    `torch.fx.experimental.symbolic_shapes.statically_known_true`: run 2.13, read 2.11.
    """
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # slow to import, needed while tracing only

    return statically_known_true(left == right)


def static_size(size: int | torch.SymInt) -> int | None:
    """A size that is the same for every input that the graph serves, or None; asking adds no guard.

    `torch.fx.experimental.symbolic_shapes.is_concrete_int`: run 2.13, read 2.11.
    """
    from torch.fx.experimental.symbolic_shapes import is_concrete_int  # slow to import, needed while tracing only

    return int(size) if is_concrete_int(size) else None


def size_hint(size: Any) -> Any:
    """The number that a symbolic size had when it was captured, or None; anything else as it is. Adds no guard.

    `torch.SymInt.node.hint`: run 2.13.
    """
    return size.node.hint if isinstance(size, torch.SymInt) else size


def is_traced_by_fx(x: object) -> bool:
    """Whether `x` is a proxy of `torch.fx.symbolic_trace`, of which nothing can be asked."""
    return isinstance(x, Proxy)


def has_rows_in_values(x: Tensor) -> bool:
    """Whether `x` is a jagged nested tensor whose last dimension is not the ragged one.

    `torch.nested._internal.nested_tensor.NestedTensor._ragged_idx`: run 2.13.
    """
    return x.is_nested and x.layout is torch.jagged and bool(cast(Any, x)._ragged_idx < x.dim() - 1)


def map_values(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of single rows, of the values of a jagged nested tensor; the result shares its offsets.

    `torch.nested._internal.nested_tensor.NestedTensor._ragged_idx`, `_maybe_min_seqlen`, `_maybe_max_seqlen`: run 2.13.
    """
    nested = cast(Any, x)
    lengths = {"min_seqlen": nested._maybe_min_seqlen, "max_seqlen": nested._maybe_max_seqlen}
    return torch.nested.nested_tensor_from_jagged(
        function(x.values()), nested.offsets(), nested.lengths(), nested._ragged_idx, **lengths
    )


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
    """Whether Inductor finds a C++ compiler, by its own settings.

    `torch._inductor.cpp_builder.get_cpp_compiler`: run 2.13, read 2.11.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler  # slow to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def frozen_weights() -> AbstractContextManager[None]:
    """Lets Inductor lay out the weights of what is compiled under no_grad inside the block, once and for all.

    `torch._inductor.config.freezing`: run 2.13, read 2.11.
    """
    from torch._inductor import config  # slow to import

    return cast(AbstractContextManager[None], config.patch(freezing=True))
