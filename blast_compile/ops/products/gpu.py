"""Runs the ops on GPU tensors: plan, generated kernel, launch. Dispatched by the op's CUDA key, which AMD shares.

Same arguments as in `cpu.py`, and the same errors, but for a damaged index: the host reads no value of a
tensor, so a call waits for nothing and a CUDA graph can hold it, and a kernel on a GPU cannot raise. So nothing here
verifies the check words of a packed index: loading, packing and saving do. A plan depends on dtypes, shapes and
strides, a config on a bucket of tokens besides; what is allocated depends on those alone. Calls that no kernel serves
run in `gpu_dense.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from blast_compile.codegen.family import FORWARD, PRODUCTS
from blast_compile.codegen.spec import Op
from blast_compile.kernels.gpu.find import GpuKernel
from blast_compile.ops import checks, planning
from blast_compile.ops.call import read_call
from blast_compile.ops.products import gpu_dense, gpu_steps
from blast_compile.ops.products.gpu_gradients import weight_grad


def run(op: Op, *arguments: Any) -> Tensor:
    """A forward product or an input gradient; abi and probes change no result."""
    call = read_call(op, arguments)
    kernel = planning.plan_of(op, call).kernel
    checks.check_residual(call)
    if not isinstance(kernel, GpuKernel) or not call.x.numel():
        return gpu_dense.product(op, call)
    if op == "input_grad":
        return gpu_steps.input_grad(kernel.steps[0], call.x, call.layers[0], call.sizes[0])[0]
    if kernel.mlp is not None and (whole := gpu_steps.whole_mlp(kernel.mlp, call)) is not None:
        return whole
    y, layers = call.x, iter(call.layers)
    for step, size in zip(kernel.steps, call.sizes, strict=True):
        own = tuple(itertools.islice(layers, FORWARD[step.op].num_layers))
        y = gpu_steps.forward(step, y, own, call.residual if step is kernel.steps[-1] else None, size)
    return y


OPS: dict[Op, Callable[..., Tensor]] = {**{op: partial(run, op) for op in PRODUCTS}, "weight_grad": weight_grad}
