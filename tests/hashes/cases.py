"""The cases of `python -m tests.hashes`: calls of the ops, and whole models, each with hashes of what it gives.

Only the face is used, and `torch.ops.blast`, so that nothing here changes with the folders of the package: operands are
those with which a sparse layer calls its op, and arguments are found by the names in the schemas.

    op form              a hash for each number of tokens
    op form, gradients   the same, of all gradients; where no kernel serves the call, of gradients of gradients too
    model form           a hash of the logits; in training, of the loss and of the gradients of all parameters
"""

from __future__ import annotations

import hashlib
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from blast_compile import BlockSparse, pack_, sparsify_  # with them come the ops

Hashes = dict[str, str]
Entry = tuple[str, Callable[[], Hashes]]
"""A name that begins those of its hashes, and what computes them."""

TOKENS: dict[int, tuple[int, ...]] = {1: (1,), 5: (5,), 64: (4, 16), 200: (2, 4, 25)}
SHAPES = {
    "linear": {"": "NK"},
    "gated_linear": {"gate_": "NK", "up_": "NK"},
    "mlp": {"up_": "HK", "down_": "NH"},
    "gated_mlp": {"gate_": "HK", "up_": "HK", "down_": "NH"},
}
"""The forward ops, with the shape of each layer behind the prefix of its arguments."""
PRODUCTS = ("input_grad", "weight_grad", "hidden_grad", "gated_hidden_grad", "block_norms")
FUNCTIONS = ("quick_gelu", "relu_squared")
_F64, _F32, _BF16, _F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
VALUES: dict[str, tuple[Any, ...]] = {
    "op": tuple(SHAPES),
    "dtypes": ((_F32, _F32), (_BF16, _BF16), (_F16, _F16), (_BF16, _F32), (_F64, _F64)),
    "block": ((32, 32), (16, 16), (16, 32), (13, 17), (4, 4)),
    "form": ("masked", "packed", "transposed"),
    "activation": ("identity", "relu", "gelu", "gelu_tanh", "silu", "quick_gelu", "relu_squared"),
    "bias": (True, False),
    "residual": (False, True),
    "ragged": (True, False),
}


@dataclass(frozen=True)
class Case:
    """What decides which kernel serves a call; dtypes: of `x` and of the weights."""

    op: str
    dtypes: tuple[torch.dtype, torch.dtype]
    block: tuple[int, int]
    form: str
    activation: str
    bias: bool
    residual: bool
    ragged: bool

    def __str__(self) -> str:
        dtypes = [str(dtype).removeprefix("torch.") for dtype in dict.fromkeys(self.dtypes)]
        parts = [self.op, "/".join(dtypes), f"{self.block[0]}x{self.block[1]}", self.form]
        parts += [self.activation] * (self.op in SHAPES or "hidden" in self.op)
        return " ".join(parts + [name for name in ("bias", "residual", "ragged") if getattr(self, name)])

    @property
    def has_kernel(self) -> bool:
        return min(self.block) >= 8 and self.dtypes[0] != _F64

    def size(self, letter: str) -> int:
        """`N`, `K` or `H`, the hidden features: multiples of the block, or ragged."""
        edge = {"N": self.block[0], "K": self.block[1], "H": math.lcm(*self.block)}[letter]
        if self.ragged:
            edge = max(self.block) if letter == "H" else edge
            return 2 * edge + edge // 2 + 3
        return 2 * edge if letter == "H" else 3 * edge


@cache
def covering() -> tuple[Case, ...]:
    """Few cases that hold every two values of two fields; activations meet ops and forms alone (greedy)."""
    draw = random.Random(0)
    pairs = [
        (a, b) for a, b in itertools.combinations(VALUES, 2) if "activation" not in (a, b) or {"op", "form"} & {a, b}
    ]
    # A dict in place of a set: the order of a set of strings is another in every process.
    missing = dict.fromkeys(((a, v), (b, w)) for a, b in pairs for v in VALUES[a] for w in VALUES[b])
    cases = []
    while missing:
        first = dict(next(iter(missing)))
        rows = [{name: draw.choice(values) for name, values in VALUES.items()} | first for _ in range(200)]
        held = [[((a, row[a]), (b, row[b])) for a, b in pairs] for row in rows]
        best = max(range(len(rows)), key=lambda number: sum(pair in missing for pair in held[number]))
        for pair in held[best]:
            missing.pop(pair, None)
        case = Case(**rows[best])
        cases.append(replace(case, residual=case.residual and case.op != "gated_linear"))
    return tuple(dict.fromkeys(cases))


def differentiated(cases: Iterable[Case]) -> list[Case]:
    """Those whose gradients are taken, each of which costs three kernels: whatever needs none, and a cover by fewer."""
    chosen: list[Case] = []
    seen: dict[object, None] = {}
    for case in cases:
        block = (case.block, case.form)
        pairs: dict[object, None] = dict.fromkeys(
            [(case.op, case.dtypes), (case.op, case.form), (case.dtypes, case.form), block]
        )
        if not case.has_kernel or pairs.keys() - seen.keys():
            chosen.append(case)
            seen |= pairs
    return chosen


def products(cases: Iterable[Case]) -> Iterator[Case]:
    """The ops of backward passes, once for all that decides a kernel of theirs."""
    activations = itertools.cycle(VALUES["activation"])
    for number, kind in enumerate(dict.fromkeys((case.dtypes, case.block, case.form) for case in cases)):
        activation = next(activations)
        for op in PRODUCTS:
            yield Case(op, *kind, activation, bias=False, residual=False, ragged=number % 2 == 0)


def op_entries() -> Iterator[Entry]:
    """All calls of ops."""
    cases = covering()
    with_gradients = differentiated(cases)
    for case in cases:
        yield str(case), partial(hashes_of_forward, case, gradients=case in with_gradients)
    for case in products(with_gradients):
        yield str(case), partial(hashes_of_product, case)
    for name in FUNCTIONS:
        yield name, partial(_hash_of_function, name)


def _hash_of_function(name: str) -> Hashes:
    x, op = torch.linspace(-9, 9, 1001), getattr(torch.ops.blast, name)
    return {name: digest([op(x), op(x.bfloat16())])}


def hashes_of_forward(case: Case, *, gradients: bool) -> Hashes:
    """The hashes of a forward op, one for each number of tokens."""
    op, calls = getattr(torch.ops.blast, case.op).nograd, [arguments(case, leading) for leading in TOKENS.values()]
    hashes = {str(case): " ".join(digest(_run(op, values)) for values in calls)}
    if gradients:
        hashes[f"{case}, gradients"] = " ".join(digest(_gradients(case, values)) for values in calls)
    return hashes


def hashes_of_product(case: Case) -> Hashes:
    """The hashes of an op of backward passes, one for each number of tokens."""
    op, calls = getattr(torch.ops.blast, case.op).default, [arguments(case, leading) for leading in TOKENS.values()]
    return {str(case): " ".join(digest(_run(op, values)) for values in calls)}


def digest(results: Iterable[Tensor | None]) -> str:
    """16 hex digits for the dtypes, shapes and bits of tensors."""
    sha256 = hashlib.sha256()
    for result in results:
        if result is not None:
            flat = result.detach().reshape(-1).contiguous()
            sha256.update(f"{result.dtype} {tuple(result.shape)}".encode() + flat.view(torch.uint8).numpy().tobytes())
        sha256.update(b";")
    return sha256.hexdigest()[:16]


def arguments(case: Case, leading: tuple[int, ...]) -> dict[str, Any]:
    """What ops may ask for, by the names in their schemas."""
    generator = torch.Generator().manual_seed(1)
    N, K, H = (case.size(letter) for letter in "NKH")
    values: dict[str, Any] = {"block": list(case.block), "activation": case.activation, "residual": None}
    values |= {"in_features": K, "out_features": N, "hidden_features": K if case.op in PRODUCTS else H}
    widths = {"x": K, "grad": N, "z": K, "gate": K, "up": K} | ({"residual": N} if case.residual else {})
    values |= {name: _random((*leading, size), generator).to(case.dtypes[0]) for name, size in widths.items()}
    is_alike = case if case.op in SHAPES else replace(case, op="linear", activation="identity")
    return values | _operands(is_alike)


class _Call(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the arguments of an op of ours in place of running it."""

    values: dict[str, Any]

    def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "blast":
            return func(*args, **(kwargs or {}))
        self.values = {argument.name: value for argument, value in zip(func._schema.arguments, args, strict=False)}
        return torch.empty_like(args[0])


@cache
def _operands(case: Case) -> dict[str, Any]:
    """What sparse layers call their op with, behind their prefixes; one block row is full and one is empty."""
    generator, (bn, bk) = torch.Generator().manual_seed(0), case.block
    shapes = {prefix: (case.size(letters[0]), case.size(letters[1])) for prefix, letters in SHAPES[case.op].items()}
    model, masks = nn.ModuleDict(), {}
    for prefix, (N, K) in shapes.items():
        name = f"layer_{prefix}"
        model[name] = layer = nn.Linear(K, N, bias=case.bias, dtype=case.dtypes[1])
        for parameter in layer.parameters():
            parameter.data = (_random(parameter.shape, generator) / K**0.5).to(parameter.dtype)
        masks[name] = torch.rand(-(-N // bn), -(-K // bk), generator=generator) < 0.5
        masks[name][0], masks[name][1] = True, False
    sparsify_(model, BlockSparse(block=case.block, targets="all"), masks=masks)
    if case.form == "packed":
        pack_(model, dense_below=0.0)
    values: dict[str, Any] = {}
    for prefix, (_, K) in shapes.items():
        with torch.no_grad(), _Call() as call:  # type: ignore[no-untyped-call]
            model[f"layer_{prefix}"](torch.zeros(1, K, dtype=case.dtypes[1]))
        weight = call.values["weight"]
        call.values["weight"] = weight.t().contiguous().t() if case.form == "transposed" else weight
        call.values["probe"] = torch.ones(masks[f"layer_{prefix}"].shape)
        values |= {prefix + name: call.values[name] for name in ("weight", "index", "bias", "probe")}
        values["abi"] = call.values["abi"]
    return values


def _random(shape: Iterable[int], generator: torch.Generator) -> Tensor:
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64)


@torch.no_grad()
def _run(op: Any, values: dict[str, Any]) -> tuple[Tensor, ...]:
    result = op(*(values[argument.name] for argument in op._schema.arguments))
    return result if isinstance(result, tuple) else (result,)


def _gradients(case: Case, values: dict[str, Any]) -> list[Tensor | None]:
    op = getattr(torch.ops.blast, case.op).default
    names = [argument.name for argument in op._schema.arguments]
    wanted = {
        name: values[name].detach().requires_grad_()
        for name in names
        if isinstance(values[name], Tensor) and not name.endswith("index")
    }
    y, inputs = op(*((values | wanted)[name] for name in names)), list(wanted.values())
    grads = torch.autograd.grad(y, inputs, values["grad"], create_graph=not case.has_kernel)
    again = [grad for grad in grads if grad.requires_grad]
    if case.has_kernel or not again:
        return [y, *grads]
    return [y, *grads, *torch.autograd.grad(again, inputs, [grad.detach() for grad in again], allow_unused=True)]
