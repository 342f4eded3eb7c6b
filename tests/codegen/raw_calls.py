"""Calls of kernels outside this process: what `ops/products/cpu.py` would pass, for `driver.cpp` to place in memory."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import Tensor

from blast_compile.base import env
from blast_compile.codegen.spec import Op, Spec
from blast_compile.kernels import cpu
from blast_compile.kernels.kernel import Kernel
from blast_compile.masks import layout
from blast_compile.ops import planning
from blast_compile.ops.call import read_call
from tests.op_cases import Call, check, check_accuracy

DRIVER = Path(__file__).with_name("driver.cpp")
NUM_THREADS = 2


@dataclass(frozen=True)
class RawCall:
    """A kernel and its arguments; a tensor stands for its address, `out` for that of the result."""

    spec: Spec
    arguments: tuple[int | Tensor, ...]
    out: Tensor
    call: Call
    grad: Tensor | None = None

    def check(self, result: Tensor) -> None:
        """Asserts that a result is right."""
        if self.grad is None:
            return check(result, self.call)
        layer, is_input = self.call.layers[0], self.spec.op == "input_grad"
        clean, shape = layer.clean, (layer.clean.shape[0], layer.clean.shape[1])

        def dense(dtype: torch.dtype) -> Tensor:
            assert self.grad is not None
            grad, x = self.grad.to(dtype), self.call.x.to(dtype)
            kept = layout.spread(layer.kept, shape, self.spec.block)
            return grad @ clean.to(dtype) if is_input else (grad.t() @ x) * kept

        if self.spec.layout == "packed" and not is_input:
            result = layout.unpack(result, layer.index, shape, self.spec.block)
        return check_accuracy(result, dense(torch.float64), lambda: dense(self.call.case.dtype))


def raw_call(call: Call, op: Op | None = None) -> RawCall:
    """What a kernel is called with for `call`, whose `x` may have spare room between its rows.

    op: "input_grad" or "weight_grad" for the gradient of a linear layer, from a random gradient of its result.
    """
    x, N = call.x, call.layers[-1].clean.shape[0]
    tokens, operands = x.shape[0], call.args[:-1]
    grad = torch.randn(tokens, N, generator=torch.Generator().manual_seed(1)).to(x.dtype) if op else None
    layer = call.layers[0]
    if op == "weight_grad":
        assert grad is not None
        spec, constants = planned(op, grad, x, layer.operand, layer.index, call.case.block)
        out = torch.full_like(layer.operand, torch.nan if layer.operand.dim() == 3 else 0.0)
        numbers: list[int | Tensor] = [grad, grad.stride(0), N, x, x.stride(0), x.shape[1], layer.kept.shape[0]]
        numbers += [constants[0][-1], layer.index, out, *out.stride()[:2]]
        return RawCall(spec, (NUM_THREADS, tokens, *numbers), out, call, grad)
    if op == "input_grad":
        assert grad is not None
        operands = [grad, layer.operand, layer.index, x.shape[1], call.case.block]
        call.layers[0].bias = None
    spec, constants = planned(op or call.case.op, *operands)
    source = x if grad is None else grad
    out = x.new_full((tokens, N if grad is None else x.shape[1]), torch.nan)
    numbers = [source, source.stride(0), out, 0 if call.residual is None else call.residual]
    for layer, of_layer in zip(call.layers, constants, strict=True):
        numbers += [layer.operand, layer.index, 0 if layer.bias is None else layer.bias, *of_layer]
    return RawCall(spec, (NUM_THREADS, tokens, *numbers), out, call, grad)


def planned(op: Op, *operands: object) -> tuple[Spec, tuple[tuple[int, ...], ...]]:
    """The spec and the constants of the layers that a call is planned with; no kernel is built."""
    with patch.object(cpu, "kernel_for", return_value=Kernel("none")) as asked:
        if op == "weight_grad":
            constants = planning.plan_weight_grad(*operands).constants  # type: ignore[arg-type]
        else:
            constants = planning.plan(op, read_call(op, operands)).constants
    return asked.call_args.args[0], constants


def build_driver(folder: Path, *flags: str) -> Path:
    """Compiles the driver."""
    program = folder / "driver"
    libraries = ("-fopenmp", "-rdynamic", "-ldl")  # kernels find what the driver defines
    subprocess.run([str(env.cxx()), DRIVER, "-o", program, "-O1", "-std=c++20", *libraries, *flags], check=True)
    return program


def run_outside(program: Path, kernel: Path, calls: Iterable[RawCall], place: str, folder: Path) -> str:
    """Runs calls of one kernel in a process of its own and checks their results; what it said where it failed."""
    calls = list(calls)
    (folder / "calls").write_bytes(b"".join(map(_packed, calls)))
    command = [str(path) for path in (program, kernel, folder / "calls", folder / "results")] + [place]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"ASAN_OPTIONS": "detect_leaks=0"})
    if done.returncode:
        return f"status {done.returncode}: {done.stderr}"
    results = bytearray((folder / "results").read_bytes())
    for call in calls:
        size = call.out.untyped_storage().nbytes()
        flat = torch.frombuffer(results[:size], dtype=call.out.dtype) if size else call.out.flatten()
        call.check(flat.as_strided(call.out.shape, call.out.stride()))
        del results[:size]
    assert not results
    return ""


def _packed(call: RawCall) -> bytes:
    parts = [struct.pack("q", len(call.arguments))]
    for argument in call.arguments:
        if isinstance(argument, int):
            parts.append(struct.pack("qq", 0, argument))
            continue
        # from the first element to the last and no further, spare room between rows included
        size = 1 + sum((n - 1) * stride for n, stride in zip(argument.shape, argument.stride(), strict=True))
        flat = argument.as_strided((size if argument.numel() else 0,), (1,))
        content = flat.contiguous().view(torch.uint8).numpy().tobytes()
        parts.append(struct.pack("qq", 2 if argument is call.out else 1, len(content)) + content)
    return b"".join(parts)
