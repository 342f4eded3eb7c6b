"""Host code may be captured in a CUDA graph: it reads no value, and what it allocates depends on shapes alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blast_compile.ops.products import cpu
from tests.op_cases import Case, Form, make_call

pytestmark = pytest.mark.usefixtures("needs_kernels")
READS_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.nondeterministic_seeded)


class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down every operator of torch, with the sizes of what it makes; forbids those that depend on values."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert not set(READS_VALUES) & set(func.tags), f"{func} waits for the values of a tensor"
        result = func(*args, **(kwargs or {}))
        self.calls.append((str(func), tuple(result.shape) if isinstance(result, Tensor) else ()))
        return result


def watched(op: Any, *args: Any) -> list[tuple[str, tuple[int, ...]]]:
    watch = Watch()
    with watch:
        op(*args)
    return watch.calls


def all_calls(form: Form, density: float) -> list[list[tuple[str, tuple[int, ...]]]]:
    """What a product and its gradients do, with strided activations too."""
    call = make_call(Case("linear", form=form), (6,), (64, 0, 64), density=density, seed=1)
    layer, args = call.layers[0], call.args
    x, grad = call.x, torch.ones(6, 64)
    strided = [call.x.t().contiguous().t(), *args[1:]]
    block = list(call.case.block)
    return [
        watched(cpu.OPS["linear"], *args),
        watched(cpu.OPS["linear"], *strided),
        watched(cpu.OPS["input_grad"], grad, layer.operand, layer.index, 64, block, 1),
        watched(cpu.weight_grad, grad, x, layer.operand, layer.index, block, 1),
    ]


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_no_value_is_read_and_allocations_do_not_vary(form: Form) -> None:
    runs = [all_calls("masked", density) for density in (0.0, 0.3, 1.0)] if form == "masked" else [all_calls(form, 0.5)]
    assert all(run == runs[0] for run in runs)
    assert all(calls for calls in runs[0])


def test_the_watch_sees_the_reference_read_values() -> None:
    call = make_call(Case("linear", block=(4, 4), form="packed"))  # whose index the reference checks
    with pytest.raises(AssertionError, match="waits for the values"):
        watched(cpu.OPS["linear"], *call.args)
