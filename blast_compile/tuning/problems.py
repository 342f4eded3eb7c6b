"""The problem that a call of an op poses, and all problems of a graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from blast_compile.base import processor
from blast_compile.base.errors import BlastError
from blast_compile.codegen.spec import Op
from blast_compile.kernels import cpu
from blast_compile.kernels.plans.problem import Problem
from blast_compile.ops import planning
from blast_compile.ops.call import read_call, shapes_of, tokens_of

_GRADIENTS: tuple[Op, ...] = ("input_grad", "weight_grad")
_UNKNOWN_DENSITY = 0.5  # of a masked layer whose index has no values to read


def problem_of(op: Op, arguments: Sequence[Any], indices: Sequence[Tensor | None] = ()) -> Problem | str:
    """The problem of a product on arguments as in `reference.py`, fake or not, or why there is nothing to tune.

    indices: of the layers, with values, where those among the arguments are fake.
    """
    call = read_call(op, arguments)
    if call.x.device.type != "cpu":
        return f"kernels for {call.x.device.type} are not tuned yet"
    known = [index for index in indices if index is not None]
    if len(known) == len(call.layers):
        layers = zip(call.layers, known, strict=True)
        call = call._replace(layers=tuple(operands._replace(index=index) for operands, index in layers))
    spec = planning.spec_of(op, call, processor.cpu_target())
    if isinstance(spec, str):
        return spec
    kernel = cpu.kernel_for(spec)
    if kernel.run is None:
        return kernel.reason
    density = planning.density_of(op, call)
    return Problem(
        spec=spec,
        shapes=shapes_of(op, call),
        tokens=max(tokens_of(call.x), 1),
        density=_UNKNOWN_DENSITY if density is None else density,
        threads=torch.get_num_threads(),
    )


def distinct(problems: Iterable[Problem], tokens: Sequence[int] = ()) -> Iterator[Problem]:
    """One problem a bucket, for each of the given numbers of tokens or as they are."""
    seen = set()
    for problem in problems:
        for number in tokens or (problem.tokens,):
            sized = problem.at(number)
            if sized.bucket not in seen:
                seen.add(sized.bucket)
                yield sized


def gradients_of(problem: Problem) -> Iterator[Problem]:
    """The problems that the backward pass of a forward op poses: of each layer, the gradients of input and weight."""
    for shape, num_blocks in zip(problem.shapes, problem.num_blocks, strict=True):
        for op in _GRADIENTS if num_blocks else ():
            yield replace(problem, spec=replace(problem.spec, op=op, epilogues=()), shapes=(shape,))


def try_problem(op: Op, arguments: Sequence[Any], indices: Sequence[Tensor | None] = ()) -> Problem | str:
    """As `problem_of`; what would raise when it is called is a reason here."""
    try:
        return problem_of(op, arguments, indices)
    except BlastError as error:
        return str(error)
