"""Random programs around sparse layers, as text: views, writes in place, aliases, modes, graphs inside graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

# Of `[2, 3, 8]` or `[2, 3, 12]`, by the variable that they change; `v` is its name, `k` its last size.
_VIEWS = (
    "{v}.view(2, 3, {k})",
    "{v}.reshape(-1, {k}).view(2, 3, {k})",
    "{v}.view(-1, {k}).view(2, 3, {k})",
    "{v}.transpose(0, 1).reshape(-1, {k}).view(3, 2, {k}).transpose(0, 1)",
    "{v}.transpose(0, 1).transpose(0, 1)",
    "{v}[:]",
    "{v}.clone()",
    "{v}.contiguous()",
    "{v}.to(torch.float32)",
    "F.dropout({v}, 0.1, False)",
    "{v}.detach()",
    "{v}.view_as({v})",
)
_WRITES = (
    "{v}.mul_(1.5)",
    "{v}.add_(0.5)",
    "{v} += 0.25",
    "{v}.__iadd__(0.25)",
    "{v}[0] = 0.5",
    "{v}.view(-1)[3:9].zero_()",
    "{v}.transpose(0, 1).reshape(-1, {k}).add_(2.0)",
    "F.embedding(torch.arange(3), {v}[0], max_norm=0.5)",
    "F.relu({v}, inplace=True)",
)
# Autograd does not notice it: in eager mode too, what was saved for the backward pass is then something else. So a
# program that has it takes no gradients.
_UNNOTICED = ("F.batch_norm(torch.ones(6, {k}), {v}[0, 0], torch.ones({k}), training=True)",)
_ACTIVATIONS = (
    "F.relu({v})",
    "F.silu({v})",
    "F.gelu({v})",
    "{v} * torch.sigmoid({v})",
    "{v}.relu_()",
    "F.silu({v}, inplace=True)",
    "{v}.clamp(min=0)",
    "{v} + F.relu(-{v})",
    "0.5 * {v} * (1.0 + torch.erf({v} / 2.0**0.5))",
    "F.relu({v}) ** 2",
    "{v}.clamp_min(0.0).clone()",
)
_HALVES = (
    "{v}.chunk(2, -1)",
    "{v}.split(12, -1)",
    "({v}[..., :12], {v}[..., 12:])",
    "{v}.view(2, 3, 2, 12).unbind(-2)",
    "{v}.reshape(2, 2, 3, 12).unbind(0)",
)
_MODES = (
    "torch.no_grad()",
    "torch.no_grad()",
    "torch.enable_grad()",
    "torch.autocast('cpu', enabled=False)",
    "torch.autocast('cpu', torch.bfloat16)",
    "torch.inference_mode()",
)


@dataclass
class Program:
    """Lines of the body of `program(m, x, z)`. grad: run with gradients. alias: `z` is a view of `x`.

    is_blind: writes that autograd does not notice are among its lines, and nothing takes gradients.
    """

    grad: bool
    alias: bool
    is_blind: bool = False
    lines: list[str] = field(default_factory=list)
    names: list[tuple[str, int]] = field(default_factory=lambda: [("x", 8), ("z", 8)])
    results: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        body = "\n".join(f"    {line}" for line in self.lines)
        head = f"def program(m, x, z):  # grad: {self.grad}, alias: {self.alias}"
        return f"{head}\n{body}\n    return {', '.join(self.results)},"

    @property
    def rounds(self) -> bool:
        """Whether part of it runs in 16 bits."""
        return "bfloat16" in str(self)

    def compiled(self) -> Callable[..., Any]:
        names: dict[str, Any] = {"torch": torch, "F": F, "checkpoint": checkpoint}
        exec(str(self), names)  # text of this file alone
        made: Callable[..., Any] = names["program"]
        return made

    def new(self, expression: str, size: int) -> str:
        name = f"t{len(self.names)}"
        self.lines.append(f"{name} = {expression}")
        self.names.append((name, size))
        return name


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """One to three MLPs, with views and writes before, between and behind their steps, and most results returned."""
    grad, is_blind = draw(st.sampled_from((*((True, False),) * 4, (False, False), (False, True))))
    program = Program(grad, alias=draw(st.integers(0, 3)) == 3, is_blind=is_blind)
    for _ in range(draw(st.integers(1, 3))):
        step = draw(st.sampled_from((_mlp, _mlp, _gated, _halves, _inside)))
        step(draw, program, _pick(draw, program))
        _written(draw, program, program.names[-1][0], _pick(draw, program))
    late = [name for name, _ in program.names[:1:-1]]
    program.results = [late[0], *(name for name in late[1:5] if draw(st.booleans()))]
    return program


def _pick(draw: st.DrawFn, program: Program) -> str:
    """A variable that an MLP can take, a late one rather than an early one."""
    names = [name for name, size in program.names if size == 8]
    return names[-1 - min(draw(st.integers(0, 3)), len(names) - 1)]


def _viewed(draw: st.DrawFn, program: Program, name: str, size: int) -> str:
    """A variable, or a view of it that was made in a mode of its own, perhaps."""
    if not draw(st.booleans()):
        return name
    start = len(program.lines)
    new = program.new(draw(st.sampled_from(_VIEWS)).format(v=name, k=size), size)
    _indent(draw, program, start)
    return new


def _written(draw: st.DrawFn, program: Program, *names: str) -> None:
    """Writes to one of the variables, perhaps, in a mode of its own, perhaps."""
    if draw(st.booleans()):
        start, name = len(program.lines), draw(st.sampled_from(names))
        writes = (*_WRITES, *_UNNOTICED) if program.is_blind else _WRITES
        program.lines.append(draw(st.sampled_from(writes)).format(v=name, k=dict(program.names)[name]))
        _indent(draw, program, start)


def _indent(draw: st.DrawFn, program: Program, start: int) -> None:
    """Puts the lines from `start` on into a mode, perhaps."""
    mode = draw(st.sampled_from((None,) * 6 + _MODES))
    if mode is not None and not (program.is_blind and mode == "torch.enable_grad()"):
        program.lines[start:] = [f"with {mode}:", *(f"    {line}" for line in program.lines[start:])]


def _mlp(draw: st.DrawFn, program: Program, given: str) -> None:
    start = len(program.lines)
    x = _viewed(draw, program, given, 8)
    h = program.new(f"m.up({x})", 12)
    _written(draw, program, given, x, h)
    viewed = _viewed(draw, program, h, 12)
    activated = program.new(draw(st.sampled_from(_ACTIVATIONS)).format(v=viewed), 12)
    _written(draw, program, given, x, h, viewed, activated)
    _end(draw, program, start, given, program.new(f"m.down({_viewed(draw, program, activated, 12)})", 8))


def _gated(draw: st.DrawFn, program: Program, given: str) -> None:
    start = len(program.lines)
    x = _viewed(draw, program, given, 8)
    view = draw(st.sampled_from(("{v}", "{v}.view(-1, 8)", "{v}.reshape(-1, 8)", "{v}.view(2, 3, 8)"))).format(v=x)
    program.lines += [f"gate, up = m.gate({view}), m.up({view})"]
    _written(draw, program, given, x)
    activation = draw(st.sampled_from(_ACTIVATIONS)).format(v="gate")
    h = program.new(f"(({activation}) * up).view(2, 3, 12)", 12)
    _written(draw, program, given, x, h)
    _end(draw, program, start, given, program.new(f"m.down({_viewed(draw, program, h, 12)})", 8))


def _halves(draw: st.DrawFn, program: Program, given: str) -> None:
    start = len(program.lines)
    x = _viewed(draw, program, given, 8)
    both = program.new(f"m.both({x})", 24)
    program.lines.append(f"gate, up = {draw(st.sampled_from(_HALVES)).format(v=both)}")
    _written(draw, program, given, x)
    h = program.new("(F.silu(gate) * up).view(2, 3, 12)", 12)
    _end(draw, program, start, given, program.new(f"m.down({h})", 8))


def _inside(draw: st.DrawFn, program: Program, given: str) -> None:
    """An MLP in a graph of its own, as activation checkpointing makes it."""
    number = len(program.names)
    names = [("v", 8)] * number  # so that its own are none of those outside
    inner = Program(program.grad, alias=False, is_blind=program.is_blind, names=names)
    draw(st.sampled_from((_mlp, _gated, _halves)))(draw, inner, "v")
    program.lines += [f"def part{number}(v):", *(f"    {line}" for line in inner.lines)]
    program.lines += [f"    return {inner.names[-1][0]}"]
    start = len(program.lines)
    result = program.new(f"checkpoint(part{number}, {given}, use_reentrant=False)", 8)
    _end(draw, program, start, given, result)


def _end(draw: st.DrawFn, program: Program, start: int, given: str, result: str) -> None:
    """A residual, perhaps, and a mode around all of it, perhaps."""
    if draw(st.booleans()):
        program.new(f"{result} + {given}", 8)
    _indent(draw, program, start)
