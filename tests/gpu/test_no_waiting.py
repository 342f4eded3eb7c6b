"""The host never waits for a GPU: every call goes through on CUDA tensors that have no values to read.

A CUDA graph can hold such a call: what it launches and allocates follows from shapes alone. The machine is pretended:
fake tensors, a capability, and a launcher that takes notes; `no_waiting.py` watches what torch runs beside it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from blast_compile.codegen.spec import Spec
from blast_compile.codegen.triton import build
from blast_compile.codegen.triton.build import TritonKernel
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.kernels.gpu import device, find, launch_gradients
from blast_compile.kernels.gpu import launch as triton_launch
from blast_compile.kernels.kernel import Kernel
from blast_compile.ops import planning
from blast_compile.ops.products import gpu, gpu_dense, gpu_gradients, gpu_steps
from blast_compile.ops.register import ABI
from tests.gpu.no_waiting import BODIES, HostWaitsError, NoWaiting
from tests.op_cases import FORMS, OPS, Call, Case, make_call

Note = tuple[object, ...]


@dataclass
class Notes:
    """Stands for a compiled kernel and notes its launches: name, grid, and each argument, of tensors their shape."""

    name: str
    arg_names: list[str]
    launches: list[Note] = field(default_factory=list)

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(**arguments: object) -> None:
            shown = [(name, tuple(v.shape) if isinstance(v, Tensor) else v) for name, v in arguments.items()]
            self.launches.append((self.name, grid, *shown))

        return run


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Note]]:
    """A machine with an H100, on which nothing runs."""
    found: list[Note] = []
    load_kernel = build.load_kernel

    def load(*arguments: Any) -> TritonKernel:
        kernel = load_kernel(*arguments)
        noting: dict[str, Any] = {"is_interpreted": device._interpreted is not None}
        noting |= {"function": Notes(kernel.spec.op, kernel.function.arg_names, found)}
        if hasattr(kernel, "helpers"):
            noting["helpers"] = {name: Notes(name, helper.arg_names, found) for name, helper in kernel.helpers.items()}
        return replace(kernel, **noting)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "H100")
    monkeypatch.setattr(torch.cuda, "device", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(build, "load_kernel", load)
    _forget()
    yield found
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    planning.forget()
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
        with torch.no_grad(), mode, NoWaiting() as calls:
            result = gpu.OPS[op](*arguments)
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
    described: Kernel = planning.describe(op, *arguments[:-1])
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
    leaves = leaves_of(call, arguments)
    with mode, NoWaiting() as calls:
        y = getattr(torch.ops.blast, op)(*arguments)
        torch.autograd.grad(y, leaves, torch.empty_like(y))
    fused = "gated_hidden_grad" if op == "gated_mlp" else "hidden_grad"
    assert calls.names.count(f"blast.{fused}.default") == 1
    assert not [name for name in calls.names if "silu_backward" in name]

    layer = call.layers[-1]
    hidden, grad = (torch.empty(7, size, dtype=torch.bfloat16) for size in reversed(layer.clean.shape))
    taken = [hidden, hidden] if op == "gated_mlp" else [hidden]
    launches.clear()
    values = [fake(mode, value, "cpu") for value in (grad, layer.operand, layer.index, *taken)]
    with torch.no_grad(), mode, NoWaiting() as calls:
        BODIES[fused](*values, layer.clean.shape[1], [32, 32], "silu", ABI)
    listed = [] if form == "packed" else ["list_kept"]
    assert [note[0] for note in launches] == [*listed, "input_grad"]
    assert not [name for name in calls.names if "mm" in name or "silu" in name]


def run_with_gradients(case: Case, *, is_probed: bool = True) -> list[str]:
    """What torch ran in a call and in its backward pass, as if CPU tensors were those of a GPU."""
    call, mode = make_call(case), FakeTensorMode()
    probes = [torch.ones(layer.kept.shape) for layer in call.layers] if is_probed else []
    arguments: list[Any] = [fake(mode, value, "cpu") for value in (*call.args, *probes)]
    leaves = [*leaves_of(call, arguments), *(probe.requires_grad_() for probe in arguments[len(call.args) :])]
    with mode, NoWaiting() as calls:
        y = getattr(torch.ops.blast, case.op)(*arguments)
        torch.autograd.grad(y, leaves, torch.empty_like(y))
    names: list[str] = calls.names
    return names


def leaves_of(call: Call, arguments: list[Any]) -> list[Tensor]:
    """Of the arguments those that have gradients, which is all but masks and indices."""
    is_index = [any(value is layer.index for layer in call.layers) for value in call.args]
    return [
        value.requires_grad_()
        for value, no_gradient in zip(arguments, is_index, strict=False)
        if isinstance(value, Tensor) and not no_gradient
    ]


def departing(step: Spec, config: TritonConfig, *_: object) -> TritonConfig:
    """In what makes a launch ask for more than tensors as they are."""
    return replace(config, splits=2) if step.op == "weight_grad" else replace(config, is_ordered=True)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("way", ["untuned", "ordered and split", "without kernels"])
def test_nothing_is_read_back_forward_or_backward(
    way: str, op: Any, form: Any, launches: list[Note], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_interpreted", "cuda:sm_90")
    if way == "ordered and split":
        monkeypatch.setattr(find, "fit", departing)
    block = (4, 4) if way == "without kernels" else (32, 32)
    names = run_with_gradients(Case(op, torch.float32, block, form, "silu", residual=True))
    assert names.count("blast.weight_grad.nograd") == names.count("blast.block_norms.default") == Case(op).num_layers
    hidden = {"mlp": "blast.hidden_grad.default", "gated_mlp": "blast.gated_hidden_grad.default"}
    assert way == "without kernels" or op not in hidden or hidden[op] in names
    launched = {str(note[0]) for note in launches}
    if way == "without kernels":
        assert not launched
        return
    assert launched >= {"weight_grad", "block_norms", "input_grad"}
    assert ("list_kept" in launched) == (form != "packed")
    assert ("aten.sort.stable" in names, "reduce" in launched) == (way == "ordered and split",) * 2


READS: dict[str, Any] = {
    "item": lambda t: t.sum().item(),
    "bool": lambda t: bool(t.any()),
    "int": lambda t: int(t[0, 0]) if t.dim() == 2 else int(t[0]),
    "list": lambda t: t.tolist(),
    "equal": torch.equal,
    "nonzero": lambda t: t.nonzero(),
    "where": torch.where,
    "mask": lambda t: t[t != 0],
    "put": lambda t: t.index_put((t != 0,), t.new_zeros(())),
    "select": lambda t: t.masked_select(t != 0),
    "unique": lambda t: t.unique(),
    "repeat": lambda t: t.repeat_interleave(t.flatten().long()),
    "bincount": lambda t: t.flatten().long().bincount(),
    "sparse": lambda t: t.to_sparse(),
}


@pytest.mark.parametrize("name", list(READS))
def test_a_read_of_values_would_be_seen(name: str) -> None:
    """Also of real tensors; only a list is made of those without an operator."""
    read, real = READS[name], torch.ones(3, 3)
    arguments = [real, real] if name == "equal" else [real]
    with NoWaiting(), pytest.raises(HostWaitsError) if name != "list" else contextlib.nullcontext():
        read(*arguments)
    with FakeTensorMode() as mode, NoWaiting(), pytest.raises(HostWaitsError):
        read(*(fake(mode, value, "cpu") for value in arguments))


def test_a_copy_between_devices_would_be_seen() -> None:
    with FakeTensorMode(), NoWaiting():
        on_gpu, on_cpu = torch.empty(3, device="cuda"), torch.empty(3)
        for copy in (
            lambda: on_gpu.cpu(),
            lambda: torch.ops.aten._to_copy(on_cpu, device="cuda"),
            lambda: torch.tensor([1.0, 2.0], device="cuda"),
            lambda: torch.tensor(1.0, device="cuda"),
        ):
            with pytest.raises(HostWaitsError, match="one device"):
                copy()
        torch.where(on_gpu > 0, on_gpu, torch.zeros(()))  # a number, which goes along with a launch


PLACES: list[tuple[Any, str, Any, str]] = [
    (gpu, "read_call", (32, 32), "linear"),
    (triton_launch, "walked", (32, 32), "gated_linear"),
    (launch_gradients, "walked", (32, 32), "mlp"),
    (gpu_steps, "transposed_index", (32, 32), "linear"),
    (gpu_steps, "_order", (32, 32), "gated_mlp"),
    (launch_gradients, "_squares", (32, 32), "linear"),
    (gpu_gradients, "_check_like_result", (32, 32), "mlp"),
    (gpu_dense, "dense_weight", (4, 4), "gated_mlp"),
    (gpu_dense, "weight_grad", (4, 4), "linear"),
    (gpu_dense, "block_norms", (4, 4), "linear"),
]


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize(("module", "name", "block", "op"), PLACES, ids=[name for _, name, *_ in PLACES])
@pytest.mark.usefixtures("launches")
def test_a_read_that_was_put_into_a_body_would_be_seen(
    module: Any, name: str, block: Any, op: Any, form: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "_interpreted", "cuda:sm_90")
    function = getattr(module, name)

    def reading(*arguments: Any, **named: Any) -> Any:
        tensor = next(value for value in pytree.tree_leaves((arguments, named)) if isinstance(value, Tensor))
        return tensor.sum().item(), function(*arguments, **named)

    monkeypatch.setattr(module, name, reading)
    with pytest.raises(HostWaitsError, match="_local_scalar_dense"):
        run_with_gradients(Case(op, torch.float32, block, form, "silu"))
