"""Calls of the ops that go the way of a GPU, in a process whose Triton interprets."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn

from blast_compile.base.errors import TargetError
from blast_compile.codegen.triton.config import TritonConfig
from blast_compile.masks import layout
from blast_compile.masks.mask import BlockMask
from tests.op_cases import Call, Case, Layer, check, make_call, relative_error
from tests.ops import test_gradients


def choose_interpreter(store: Path) -> None:
    """Prepares a fresh process. What a kernel leaves unwritten will be NaN."""
    assert "triton" not in sys.modules
    os.environ |= {"TRITON_INTERPRET": "1", "BLAST_NATIVE": "0", "BLAST_CACHE_DIR": str(store)}
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    from tests.gpu.serve_cpu_tensors import serve_cpu_tensors  # imports the ops, which read the settings above

    serve_cpu_tensors()


def kernel_name(call: Call) -> str:
    from blast_compile.ops import planning

    return planning.describe(call.case.op, *call.args[:-1]).name


def check_call(case: Case, leading: tuple[int, ...] = (7,), density: float = 0.4) -> str:
    """Asserts what both overloads give; the name of the kernel."""
    call = make_call(case, leading, density=density)
    with torch.no_grad():
        check(call.run("nograd"), call)
        check(call.run(), call)
    return kernel_name(call)


def check_edits(case: Case) -> list[float]:
    """Errors of one op before and after its weight and mask were edited in place."""
    call, other = make_call(case), make_call(case, seed=1, density=0.7)
    errors = [relative_error(call.run("nograd"), call.dense())]
    for layer, new in zip(call.layers, other.layers, strict=True):
        layer.operand.copy_(new.operand)
        layer.index.copy_(new.index)
        layer.clean = new.clean
    return [*errors, relative_error(call.run("nograd"), call.dense())]


def check_averaged_mask(case: Case) -> None:
    """Asserts that any number but 0 in a mask means kept, forward and backward, and none of them is a factor."""
    nan, inf = float("nan"), float("inf")
    numbers = torch.tensor([1e-45, 0.25, nan, -2.0, inf])
    call, upstream = make_call(case), torch.randn(7, generator=torch.Generator().manual_seed(3))
    for layer in call.layers:
        layer.operand = torch.nan_to_num(layer.operand)
    upstream = upstream[:, None].expand(7, call.layers[-1].clean.shape[0]).to(case.dtype).contiguous()
    before = [call.run("nograd"), *_gradients(call, upstream)]
    for layer in call.layers:
        others = numbers.repeat(layer.index.numel())[: layer.index.numel()].view_as(layer.index)
        layer.index.copy_(torch.where(layer.kept, others, layer.index * -0.0))
    after = [call.run("nograd"), *_gradients(call, upstream)]
    for one, other in zip(before, after, strict=True):
        assert torch.equal(one, other)


def check_gradients(case: Case) -> list[str]:
    """Asserts what autograd gives; the activations that gradients went through inside of kernels."""
    from blast_compile.kernels.gpu.launch import launch_input_grad

    call = make_call(case)
    if case.form != "packed":
        for layer in call.layers:
            layer.operand = torch.nan_to_num(layer.operand)
    upstream = torch.randn(7, call.layers[-1].clean.shape[0], generator=torch.Generator().manual_seed(3))
    with patch("blast_compile.ops.products.gpu_steps.launch_input_grad", wraps=launch_input_grad) as launched:
        test_gradients.check_gradients(call, upstream.to(case.dtype))
    specs = [arguments.args[0].spec for arguments in launched.call_args_list]
    return [epilogue.activation for spec in specs for epilogue in spec.epilogues]


def gradient_errors(case: Case) -> list[float]:
    """Errors of the gradients of input, weights and biases against float64."""
    call = make_call(case)
    for layer in call.layers:  # autograd of the truth sees dropped blocks too
        layer.operand = torch.nan_to_num(layer.operand)
    y = call.run("nograd")
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(y.dtype)
    got = _gradients(call, upstream)
    truth = make_call(case)
    truth.x = truth.x.double()
    for layer in truth.layers:
        layer.operand, layer.bias = layer.clean, None if layer.bias is None else layer.bias.double()
    x, *expected = _gradients(truth, upstream.double(), is_truth=True)
    weights = [_as_operand(weight, layer, case) for weight, layer in zip(expected[::2], call.layers, strict=True)]
    wanted = [x, *(t for pair in zip(weights, expected[1::2], strict=True) for t in pair)]
    return [relative_error(a, b) for a, b in zip(got, wanted, strict=True)]


def _gradients(call: Call, upstream: Tensor, *, is_truth: bool = False) -> tuple[Tensor, ...]:
    """Those of x, then of weight and bias of each layer."""
    tensors = [call.x]
    for layer in call.layers:
        assert layer.bias is not None
        tensors += [layer.operand, layer.bias]
    for tensor in tensors:
        tensor.requires_grad_()
    return torch.autograd.grad(call.dense() if is_truth else call.run(), tensors, upstream)


def _as_operand(weight_grad: Tensor, layer: Layer, case: Case) -> Tensor:
    """A dense gradient on kept blocks alone, in the form of the operand."""
    if case.form == "packed":
        return layout.pack(weight_grad, layer.kept, case.block)
    return weight_grad * layout.spread(layer.kept, (weight_grad.shape[0], weight_grad.shape[1]), case.block)


def chosen_config_errors(config: TritonConfig) -> list[float]:
    """Errors of products whose steps run at `config` because that was chosen for their bucket."""
    from blast_compile.kernels.gpu import find
    from blast_compile.ops.call import read_call
    from blast_compile.ops.planning import plan_of

    sizes, errors = find.Sizes(((128, 128),), None, "a GPU"), []
    for op in ("linear", "gated_mlp"):
        call = make_call(Case(op, torch.float32, (32, 32), "packed", "silu"))
        plan = plan_of(op, read_call(op, call.args[:-1]))
        assert isinstance(plan.kernel, find.GpuKernel)
        for step in plan.kernel.steps:
            find.choose(step, 7, config)
            assert find.loaded(step, find.bucket(7), sizes).config == config
        errors.append(relative_error(call.run("nograd"), call.dense()))
        find.forget()
        assert find.loaded(plan.kernel.steps[0], 8, sizes).config != config
    return [*errors, *gradient_errors(Case("linear", torch.float32, (16, 16), "packed", "silu"))[:1]]


def check_whole_mlp(case: Case, config: TritonConfig) -> list[int]:
    """Asserts what an MLP gives whose whole kernel was chosen for 8 tokens; of each call, the tokens if that ran."""
    from blast_compile.kernels.gpu import find
    from blast_compile.kernels.gpu.launch_mlp import launch_mlp
    from blast_compile.ops.call import read_call
    from blast_compile.ops.planning import plan_of

    find.forget()
    plan = plan_of(case.op, read_call(case.op, make_call(case).args[:-1]))
    assert isinstance(plan.kernel, find.GpuKernel)
    assert plan.kernel.mlp is not None
    found = []
    with patch("blast_compile.ops.products.gpu_steps.launch_mlp", wraps=launch_mlp) as launched:
        check_call(case, (8,))
        find.choose(plan.kernel.mlp, 8, config)
        for tokens in (5, 8, 9):
            check_call(case, (tokens,))
            found.append(launched.call_count)
    with pytest.raises(TargetError, match="expected up to 16 tokens"):
        find.choose(plan.kernel.mlp, 17, config)
    find.forget()
    return found


def check_tuned(case: Case, config: TritonConfig) -> list[bool]:
    """Asserts what an op gives before and after `config` was tuned for it here; for each call, whether that ran."""
    from blast_compile.kernels.gpu import device, find
    from blast_compile.kernels.plans.database import Database
    from blast_compile.kernels.plans.record import Record
    from blast_compile.ops.call import read_call
    from blast_compile.ops.planning import plan_of

    call, found = make_call(case), []
    plan = plan_of(case.op, read_call(case.op, call.args[:-1]))
    assert isinstance(plan.kernel, find.GpuKernel)
    name, (layer,) = device.name_of(call.x.device), call.layers
    shape = (layer.clean.shape[0], layer.clean.shape[1])
    sizes = find.Sizes.of((shape,), [layer.operand], case.block, call.x.device)
    problem = find.problem_of(plan.kernel.steps[0], 8, sizes)
    for tuned_on in ("another GPU", name):
        record = Record(problem, repr(config), "chosen", tuned_on, median_us=1.0, default_us=2.0)
        Database.default(tuned_on).add(record)
        find.forget()
        with patch.object(find, "load", wraps=find.load) as loaded:
            check_call(case)
        found.append(any(arguments.args[1] == config for arguments in loaded.call_args_list))
    return found


def check_unaligned(case: Case, config: TritonConfig) -> list[bool]:
    """Asserts what an op gives at a config with descriptors; of each call, whether that ran: `x` aligned, and not."""
    from blast_compile.kernels.gpu import find
    from blast_compile.kernels.gpu.launch import launch_forward
    from blast_compile.ops.call import read_call
    from blast_compile.ops.planning import plan_of

    found = []
    for offset in (0, 1):
        call = make_call(case, (7,), (64, 64, 96))
        memory = torch.empty(call.x.numel() + offset, dtype=call.x.dtype)
        call.x = memory[offset:].view(call.x.shape).copy_(call.x)
        plan = plan_of(case.op, read_call(case.op, call.args[:-1]))
        assert isinstance(plan.kernel, find.GpuKernel)
        find.choose(plan.kernel.steps[0], 7, config)
        with patch("blast_compile.ops.products.gpu_steps.launch_forward", wraps=launch_forward) as launched:
            check(call.run("nograd"), call)
        found.append(launched.call_args.args[0].config.uses_descriptors)
    find.forget()
    return found


def norms_error(dtype: torch.dtype, probed: str) -> float:
    """The error of the norms of blocks where a probe is filled, as the op gives them."""
    generator = torch.Generator().manual_seed(0)
    grad, x = torch.randn(9, 70, generator=generator).to(dtype), torch.randn(9, 50, generator=generator).to(dtype)
    probe = torch.zeros(5, 4) if probed == "none" else torch.ones(5, 4)
    if probed == "some":
        probe[:, ::2] = 0
    norms = torch.ops.blast.block_norms(grad, x, probe, [16, 16], 0)
    blocks = layout.to_blocks(grad.double().t() @ x.double(), (16, 16))
    return relative_error(norms, blocks.flatten(2).norm(dim=-1) * probe)


def model_error(form: str) -> tuple[float, int]:
    """The error of a compiled MLP of sparse layers, and how many Triton kernels it loaded."""
    import blast_compile as blast
    from blast_compile.kernels.gpu import find

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(96, 128), nn.GELU(), nn.Linear(128, 96)).eval().requires_grad_(False)
    blast.sparsify_(model, blast.BlockSparse(sparsity=0.5, block=32, targets="all"))
    x = torch.randn(3, 5, 96)
    truth = cast(Tensor, nn.Sequential(*(_double(layer) for layer in model))(x.double()))
    if form == "packed":
        blast.pack_(model, dense_below=0)
    find.forget()
    options: dict[str, Any] = {"delegate": "eager", "fallback": "error"}
    compiled = torch.compile(model, backend="blast", fullgraph=True, options=options)
    with torch.no_grad():
        return relative_error(compiled(x), truth), find.load.cache_info().currsize


def _double(layer: nn.Module) -> nn.Module:
    if not hasattr(layer, "mask"):
        return layer
    masked, mask = cast(nn.Linear, layer), cast(BlockMask, layer.mask)
    twin = nn.Linear(masked.in_features, masked.out_features).double()
    twin.weight = nn.Parameter((masked.weight * mask.elements()).double())
    twin.bias = nn.Parameter(masked.bias.double())
    return twin
