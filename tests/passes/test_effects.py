from __future__ import annotations

import inspect
import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverloadPacket
from torch.utils.checkpoint import checkpoint

from blast_compile.passes.calls import FUNCTIONS, INPLACE, MAX_NORM, effect_of
from blast_compile.passes.effects import Effects, Mode
from blast_compile.passes.memory import Memory
from blast_compile.passes.vocabulary import callee, describe
from tests.passes.graphs import Body, Toy, capture


def _item(_: Toy, x: Tensor) -> Any:
    x = x.clone()
    x[0] = 1.0
    return x


def _operator(_: Toy, x: Tensor) -> Any:
    x = x.clone()
    x -= 1.0
    return x


def _out(_: Toy, x: Tensor) -> Any:
    return torch.add(x, x, out=torch.empty_like(x))


MUTATING: dict[str, Body] = {
    "method": lambda _, x: x.clone().add_(1.0),
    "operator": _operator,
    "setitem": _item,
    "function": lambda _, x: torch.relu_(x.clone()),
    "flag": lambda _, x: F.relu(x.clone(), inplace=True),
    "positional flag": lambda _, x: F.dropout(x.clone(), 0.5, True, True),
    "overload": lambda _, x: torch.ops.aten.add_.Tensor(x.clone(), x),
    "packet": lambda _, x: torch.ops.aten.add_(x.clone(), x),
    "dunder": lambda _, x: x.clone().__iadd__(1.0),
    "flag of a function without one in its name": lambda _, x: F.elu(x.clone(), 1.0, True),
}
UNKNOWN: dict[str, Body] = {
    "max_norm": lambda _, x: F.embedding(torch.arange(2), x[0].clone(), max_norm=0.5),
    "positional max_norm": lambda _, x: F.embedding(torch.arange(2), x[0].clone(), None, 0.5),
    "embedding_bag": lambda _, x: F.embedding_bag(torch.arange(2)[None], x[0].clone(), max_norm=0.5),
    "batch_norm": lambda _, x: F.batch_norm(x[0], x[0, 0].clone(), torch.ones(8), training=True),
    "instance_norm": lambda _, x: F.instance_norm(x, x[0, 0, :3].clone(), torch.ones(3), use_input_stats=True),
    "method of another shape": lambda _, x: x.clone().t_() if x.dim() == 2 else x.clone().transpose_(0, 1),
    "out": _out,
}
PURE: dict[str, Body] = {
    "our op": lambda m, x: m.up(x),
    "flag": lambda _, x: F.relu(x, inplace=False),
    "boolean": lambda _, x: F.dropout(x, 0.5, True),
    "keyword": lambda _, x: x.mean(-1, keepdim=True),
    "positional boolean": lambda _, x: x.sum(-1, True),
    "builtin": lambda _, x: torch.sum(x, -1, True),
    "overload": lambda _, x: torch.ops.aten.add.Tensor(x, x),
    "embedding": lambda _, x: F.embedding(torch.arange(2), x[0]),
}


def effects_of(body: Body) -> set[str]:
    return {effect_of(node) for node in capture(Toy(body)).gm.graph.nodes}


@pytest.mark.parametrize("body", MUTATING.values(), ids=MUTATING)
def test_sees_writes(body: Body) -> None:
    assert "write" in effects_of(body)


@pytest.mark.parametrize("body", UNKNOWN.values(), ids=UNKNOWN)
def test_takes_what_is_not_on_its_lists_for_anything(body: Body) -> None:
    assert "unknown" in effects_of(body)


@pytest.mark.parametrize("body", PURE.values(), ids=PURE)
def test_sees_none_in_pure_calls(body: Body) -> None:
    assert effects_of(body) <= {"fresh", "view"}


def test_knows_where_torch_takes_what_makes_a_call_write() -> None:
    for function, position in INPLACE.items():
        assert list(inspect.signature(function).parameters)[position] == "inplace"  # type: ignore[arg-type]
    assert list(inspect.signature(F.embedding).parameters)[MAX_NORM] == "max_norm"
    for function, effect in FUNCTIONS.items():
        assert function in INPLACE or effect == "write" or "inplace" not in parameters(function)


def parameters(function: Any) -> Any:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # a builtin
        return ()


def test_no_operator_on_a_list_of_pure_calls_writes_by_its_schema() -> None:
    packets = [called for called in FUNCTIONS if isinstance(called, OpOverloadPacket)]
    assert len(packets) > 200
    for packet in packets:
        for name in packet.overloads():  # type: ignore[no-untyped-call]
            arguments = getattr(packet, name)._schema.arguments
            written = [given for given in arguments if given.alias_info is not None and given.alias_info.is_write]
            is_list = any(str(given.type).startswith("List[") for given in written)  # of TorchScript
            if FUNCTIONS[packet] != "write" and not is_list:
                assert all(given.is_out for given in written), packet
            if FUNCTIONS[packet] == "fresh" and not written:
                assert not any(given.alias_info for given in arguments), packet


def modes(body: Body, *, grad: bool) -> dict[str, Mode]:
    captured = capture(Toy(body), grad=grad)
    with torch.set_grad_enabled(grad):
        effects = Effects(captured.gm.graph)
    return {describe(node): effects.mode(node) for node in captured.gm.graph.nodes if node.op.startswith("call")}


def test_follows_gradients_autocast_and_inference_each_alone() -> None:
    def body(_: Toy, x: Tensor) -> Any:
        y = x.sin()
        with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
            with torch.no_grad():  # redundant: Dynamo leaves it out
                y = y + x.cos()
            y = y + x.tan()
        with torch.inference_mode():
            z = x.exp()
        return y.tanh(), z.shape

    found = modes(body, grad=True)
    assert found["sin"] == found["tanh"] == Mode(True)
    assert found["cos"] == found["tan"]
    assert (found["cos"].grad, len(found["cos"].autocast), found["cos"].inference) == (False, 1, ())
    assert (found["exp"].grad, found["exp"].autocast, found["exp"].inference) == (False, (), (True,))


def test_a_graph_is_entered_as_torch_computes_now() -> None:
    def body(_: Toy, x: Tensor) -> Any:
        with torch.enable_grad():
            y = x.sin()
        return y.cos()

    found = modes(body, grad=False)
    assert (found["sin"].grad, found["cos"].grad) == (True, False)


def test_looks_between_and_not_outside() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        x = x.clone().add_(1.0)
        y = F.relu(m.up(x))
        x.add_(1.0)
        return y * x.sum()

    nodes = list(capture(Toy(body)).gm.graph.nodes)
    linear, relu = (next(node for node in nodes if name in str(node.target)) for name in ("linear", "relu"))
    product = next(node for node in nodes if "mul" in str(node.target))
    effects = Effects(nodes[0].graph)
    assert effects.hazard_between([linear, relu]) is None
    assert effects.hazard_between([linear, relu, product]) == "add_ may change a tensor in place between its nodes"


def test_a_mode_that_was_left_again_is_no_hazard() -> None:
    def body(m: Toy, x: Tensor) -> Any:
        y = m.up(x)
        with torch.autocast("cpu", torch.bfloat16):
            z = x.sin()
        return F.relu(y), z

    captured = capture(Toy(body))
    linear, relu = (next(n for n in captured.gm.graph.nodes if word in str(n.target)) for word in ("linear", "relu"))
    assert Effects(captured.gm.graph).hazard_between([linear, relu]) is None


def sharing(body: Body, *words: object, dynamic: bool | None = None) -> bool:
    """Whether the first results of two calls may share memory, by their names."""
    graph = capture(Toy(body), dynamic=dynamic).gm.graph
    calls = {callee(node): node for node in reversed(graph.nodes) if node.op.startswith("call")}
    first, second = (calls[word] for word in words)
    memory = Memory(graph, effect_of)
    return not memory.of([first]).isdisjoint(memory.of([second]))


def test_a_view_shares_memory_and_what_may_copy_or_view_does() -> None:
    assert sharing(lambda _, x: x.sin().view(-1, 8).chunk(2)[0] + 1.0, "sin", operator.getitem) is True
    assert sharing(lambda _, x: x.sin().transpose(0, 1).reshape(-1, 8) + 1.0, "sin", "reshape") is True
    assert sharing(lambda _, x: x.sin().add_(1.0).cos(), "sin", "add_") is True
    assert sharing(lambda _, x: x.sin().cos(), "sin", "cos") is False


def test_sizes_do_not_make_their_tensors_share_memory() -> None:
    def body(_: Toy, x: Tensor) -> Any:
        return x.sin().view(x.shape[0] * x.shape[1], 8), x.cos().view(x.shape[0] * x.shape[1], 8)

    assert sharing(body, "sin", "cos", dynamic=True) is False


def test_arguments_of_the_caller_may_share_memory_and_parameters_do_not() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] * self.weight + pair[1]

    graph = capture(Two(), (torch.ones(8), torch.ones(8))).gm.graph  # type: ignore[arg-type]
    weight, first, second = sorted(graph.find_nodes(op="placeholder"), key=lambda node: "weight" not in node.name)
    memory = Memory(graph, effect_of)
    assert memory.of([first]) == memory.of([second]) != memory.of([weight])


def test_buffers_that_are_views_of_one_tensor_share_memory() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            whole = torch.ones(16)
            self.register_buffer("first", whole[:8])
            self.register_buffer("second", whole[8:])

        def forward(self, x: Tensor) -> Tensor:
            return x * self.get_buffer("first") + self.get_buffer("second")

    graph = capture(Two(), torch.ones(8)).gm.graph
    first, second = (node for node in graph.find_nodes(op="placeholder") if "buffers" in node.name)
    memory = Memory(graph, effect_of)
    assert memory.of([first]) == memory.of([second])


def _inside(write: bool) -> Body:
    def body(m: Toy, x: Tensor) -> Any:
        def part(x: Tensor) -> Tensor:
            return x.add_(1.0) if write else x + 1.0

        y = m.up(x)
        with torch.no_grad():
            z = checkpoint(part, x, use_reentrant=False)
        return F.relu(y), z

    return body


@pytest.mark.parametrize("write", [False, True])
def test_a_graph_inside_does_what_its_nodes_do_in_the_mode_of_its_call(write: bool) -> None:
    gm = capture(Toy(_inside(write)), grad=True).gm
    linear, relu = (next(n for n in gm.graph.nodes if word in str(n.target)) for word in ("linear", "relu"))
    effects = Effects(gm.graph)
    assert (effects.hazard_between([linear, relu]) is not None) is write
    assert [(entry.mode, entry.needs_grad) for entry in effects.entries(gm).values()] == [(Mode(False), True)]
