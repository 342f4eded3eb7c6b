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
    "F.batch_norm(torch.ones(6, {k}), {v}[0, 0], torch.ones({k}), training=True)",
)
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
    "torch.enable_grad()",
    "torch.autocast('cpu', enabled=False)",
    "torch.autocast('cpu', torch.bfloat16)",
    "torch.inference_mode()",
)


@dataclass
class Program:
    """Lines of the body of `program(m, x, z)`. grad: run with gradients. alias: `z` is a view of `x`."""

    grad: bool
    alias: bool
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
    """Some steps, of which about one in two is an MLP, and a result of most that they made."""
    program = Program(grad=draw(st.booleans()), alias=draw(st.integers(0, 3)) == 3)
    for _ in range(draw(st.integers(1, 3))):
        _extra(draw, program)
        step = draw(st.sampled_from((_mlp, _mlp, _gated, _halves, _inside)))
        step(draw, program)
    _extra(draw, program)
    last = program.names[-1][0]
    others = draw(st.lists(st.sampled_from([name for name, _ in program.names]), max_size=2))
    program.results = list(dict.fromkeys((last, *others)))
    return program


def _pick(draw: st.DrawFn, program: Program, size: int) -> str:
    """A variable of that last size, a late one rather than an early one."""
    names = [name for name, last in program.names if last == size]
    return names[-1 - min(draw(st.integers(0, 3)), len(names) - 1)]


def _extra(draw: st.DrawFn, program: Program) -> None:
    """A view, a write, or nothing; some in a mode of their own."""
    for kind in draw(st.lists(st.sampled_from(("view", "write", "write")), max_size=2)):
        name, size = program.names[-1 - min(draw(st.integers(0, 3)), len(program.names) - 1)]
        mode = draw(st.sampled_from((None, None, *_MODES[:4])))
        start = len(program.lines)
        if kind == "view":
            program.new(draw(st.sampled_from(_VIEWS)).format(v=name, k=size), size)
        else:
            program.lines.append(draw(st.sampled_from(_WRITES)).format(v=name, k=size))
        _indent(program, start, mode)


def _indent(program: Program, start: int, mode: str | None) -> None:
    if mode is not None and len(program.lines) > start:
        program.lines[start:] = [f"with {mode}:", *(f"    {line}" for line in program.lines[start:])]


def _mlp(draw: st.DrawFn, program: Program) -> None:
    x, start = _pick(draw, program, 8), len(program.lines)
    h = program.new(f"m.up({x})", 12)
    _extra(draw, program)
    h = program.new(draw(st.sampled_from(_ACTIVATIONS)).format(v=h), 12)
    _extra(draw, program)
    y = program.new(f"m.down({_pick(draw, program, 12) if draw(st.booleans()) else h})", 8)
    _end(draw, program, start, x, y)


def _gated(draw: st.DrawFn, program: Program) -> None:
    x, start = _pick(draw, program, 8), len(program.lines)
    view = draw(st.sampled_from(("{v}", "{v}.view(-1, 8)", "{v}.reshape(-1, 8)"))).format(v=x)
    gate, up = program.new(f"m.gate({view})", 12), program.new(f"m.up({view})", 12)
    product = f"{draw(st.sampled_from(_ACTIVATIONS)).format(v=gate)} * {up}".replace(" + F", " * 1.0 + F")
    h = program.new(f"({product}).view(2, 3, 12)", 12)
    program.names = [one for one in program.names if one[0] not in (gate, up)]  # of other dimensions, maybe
    _extra(draw, program)
    _end(draw, program, start, x, program.new(f"m.down({h})", 8))


def _halves(draw: st.DrawFn, program: Program) -> None:
    x, start = _pick(draw, program, 8), len(program.lines)
    program.lines.append(f"both = m.both({x})")
    program.lines.append(f"a, b = {draw(st.sampled_from(_HALVES)).format(v='both')}")
    _extra(draw, program)
    h = program.new("F.silu(a) * b", 12)
    _end(draw, program, start, x, program.new(f"m.down({h})", 8))


def _inside(draw: st.DrawFn, program: Program) -> None:
    """An MLP in a graph of its own."""
    x, size = _pick(draw, program, 8), len(program.names)
    inner = Program(program.grad, alias=False, names=[("v", 8)])
    inner.names += [("v", 8)] * size  # so that its names are none of those outside
    draw(st.sampled_from((_mlp, _gated, _halves)))(draw, inner)
    result = inner.names[-1][0]
    program.lines.append(f"def part{size}(v):")
    program.lines += [f"    {line}" for line in inner.lines]
    program.lines.append(f"    return {result}")
    program.new(f"checkpoint(part{size}, {x}, use_reentrant=False)", inner.names[-1][1])


def _end(draw: st.DrawFn, program: Program, start: int, x: str, y: str) -> None:
    """A residual, perhaps, and a mode around all of it, perhaps."""
    if draw(st.booleans()):
        program.new(f"{y} + {x}", 8)
    _indent(program, start, draw(st.sampled_from((None, None, None, *_MODES))))
