"""The host never waits for a GPU: every call goes through on CUDA tensors that have no values to read.

A CUDA graph can hold such a call: what it launches and allocates follows from shapes alone. The machine is pretended:
fake tensors, a capability, and a launcher that takes notes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from blast_compile import launch as cpu_launch
from blast_compile.codegen import triton_build
from blast_compile.codegen.triton_build import TritonKernel
from blast_compile.gpu import device, hidden_grads, launch
from blast_compile.kernels import Kernel
from tests.op_cases import FORMS, OPS, Case, make_call

Note = tuple[object, ...]


@dataclass
class Notes:
    """Stands for a compiled kernel and notes its launches: grid, and each argument, of tensors their shape."""

    arg_names: list[str]
    launches: list[Note] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(**arguments: object) -> None:
            shown = [(name, tuple(v.shape) if isinstance(v, Tensor) else v) for name, v in arguments.items()]
            self.launches.append((grid, *shown))

        return run


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names the operators of torch that run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Note]]:
    """A machine with an H100, on which nothing runs."""
    found: list[Note] = []
    load_kernel = triton_build.load_kernel

    def load(*arguments: Any) -> TritonKernel:
        kernel = load_kernel(*arguments)
        noting: dict[str, Any] = {"is_interpreted": device._interpreted is not None}
        noting |= {"function": Notes(kernel.function.arg_names, found)}
        if hasattr(kernel, "helpers"):
            noting["helpers"] = {name: Notes(helper.arg_names, found) for name, helper in kernel.helpers.items()}
        return replace(kernel, **noting)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H100")
    monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(triton_build, "load_kernel", load)
    _forget()
    yield found
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    cpu_launch.forget()
    device._target_of_gpu.cache_clear()
    device._name_of_gpu.cache_clear()


def fake(mode: FakeTensorMode, value: object, device: str) -> object:
    if not isinstance(value, Tensor):
        return value
    with mode:
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def run_twice(mode: FakeTensorMode, op: Any, arguments: list[object]) -> list[str]:
    """What torch ran in the second of two calls, the same as in the first."""
    runs: list[list[str]] = []
    for _ in range(2):
        with torch.no_grad(), mode, Calls() as calls:
            result = launch.OPS[op](*arguments)
        assert isinstance(result, FakeTensor)
        runs.append(calls.names)
    assert runs[0] == runs[1]
    return runs[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_products(op: Any, form: Any, launches: list[Note]) -> None:
    call, mode = make_call(Case(op, torch.bfloat16, (32, 32), form, "silu", residual=True)), FakeTensorMode()
    arguments = [fake(mode, value, "cuda") for value in call.args]
    ran = run_twice(mode, op, arguments)
    half = len(launches) // 2
    assert half >= 1
    assert launches[:half] == launches[half:]
    assert not [name for name in ran if "mm" in name or "linear" in name]
    described: Kernel = cpu_launch.describe(op, *arguments[:-1])
    assert described.name.startswith("triton sm_90 ")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", [*OPS, "input_grad", "weight_grad"])
def test_what_has_no_kernel(op: Any, form: Any) -> None:
    case, mode = Case("linear", torch.float32, (4, 4), form, "silu"), FakeTensorMode()
    if op in OPS:
        arguments = make_call(replace(case, op=op)).args
    else:
        call = make_call(case)
        layer, grad = call.layers[0], torch.randn(7, call.layers[0].clean.shape[0])
        weight = (layer.operand, layer.index)
        arguments = [grad, call.x, *weight] if op == "weight_grad" else [grad, *weight, call.x.shape[-1]]
        arguments.append(list(case.block))
    # A build of torch without CUDA takes no slice of a CUDA tensor, even a fake one.
    run_twice(mode, op, [fake(mode, value, "cpu") for value in arguments])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", ["mlp", "gated_mlp"])
def test_gradients_go_through_the_activation_in_a_kernel(
    op: Any, form: Any, launches: list[Note], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Autograd asks for the fused op, and that is one launch. On the CPU, for the reason above, as if it were a GPU."""
    monkeypatch.setattr(device, "_interpreted", "cuda:sm_90")
    call, mode = make_call(Case(op, torch.bfloat16, (32, 32), form, "silu")), FakeTensorMode()
    arguments: list[Any] = [fake(mode, value, "cpu") for value in call.args]
    leaves = [value for value in arguments if isinstance(value, Tensor) and value.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    with mode, Calls() as calls:
        y = getattr(torch.ops.blast, op)(*arguments)
        torch.autograd.grad(y, leaves, torch.empty_like(y))
    fused = "gated_hidden_grad" if op == "gated_mlp" else "hidden_grad"
    assert calls.names.count(f"blast.{fused}.default") == 1
    assert not [name for name in calls.names if "silu_backward" in name]

    layer = call.layers[-1]
    hidden, grad = (torch.empty(7, size, dtype=torch.bfloat16) for size in reversed(layer.clean.shape))
    taken = [hidden, hidden] if op == "gated_mlp" else [hidden]
    values = [fake(mode, value, "cpu") for value in (grad, layer.operand, layer.index, *taken)]
    with torch.no_grad(), mode, Calls() as calls:
        getattr(hidden_grads, fused)(*values, layer.clean.shape[1], [32, 32], "silu")
    assert len(launches) == 1
    assert not [name for name in calls.names if "mm" in name or "silu" in name]


def test_a_read_of_values_would_be_seen() -> None:
    with FakeTensorMode(), pytest.raises(DataDependentOutputException, match="_local_scalar_dense"):
        torch.empty(3, device="cuda").sum().item()
