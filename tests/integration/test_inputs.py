"""Inputs that are no plain tensors: jagged nested tensors, and the proxies of `torch.fx.symbolic_trace`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import LayerError

pytestmark = [
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning"),
    pytest.mark.usefixtures("fresh_dynamo"),
]


def sparse_net(*, packed: bool = False) -> nn.Module:
    """8 -> 12 -> 8; blocks under 8 run on the reference."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8))
    blast.sparsify_(net, blast.BlockSparse(block=4, sparsity=0.5, targets="all"))
    return blast.pack_(net) if packed else net


def jagged(*lengths: int) -> Any:
    """A nested tensor `[len(lengths), j, 8]`."""
    rows = [torch.randn(length, 8) for length in lengths]
    return torch.nested.nested_tensor(rows, layout=torch.jagged, requires_grad=True)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_jagged_tensors_go_through_with_their_gradients(packed: bool, compiled: bool) -> None:
    net, x = sparse_net(packed=packed), jagged(3, 5)
    options: dict[str, Any] = {"delegate": "aot_eager", "fallback": "error"}
    run: Any = torch.compile(net, backend="blast", options=options, fullgraph=True) if compiled else net
    y = run(x)
    assert y.shape == x.shape  # j and all: the two may be added
    values = x.values().detach().requires_grad_()
    torch.testing.assert_close(y.values(), net(values))
    (y + x).values().square().sum().backward()
    (net(values) + values).square().sum().backward()
    torch.testing.assert_close(x.grad.values(), values.grad)


def test_jagged_tensors_call_hooks_once() -> None:
    seen: list[Tensor] = []
    layer = sparse_net()[0]  # type: ignore[index]
    layer.register_forward_hook(lambda _layer, _inputs, y: seen.append(y))
    y = layer(jagged(3, 5))
    assert len(seen) == 1
    assert seen[0] is y


def test_jagged_tensors_may_have_more_dimensions() -> None:
    net = sparse_net()
    x = torch.nested.nested_tensor([torch.randn(3, 2, 8), torch.randn(5, 2, 8)], layout=torch.jagged)
    torch.testing.assert_close(net(x).values(), net(x.values()))
    heads = x.transpose(1, 2)  # [2, 2, j, 8]
    torch.testing.assert_close(net(heads).transpose(1, 2).values(), net(x.values()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: torch.nested.nested_tensor([torch.randn(3, 8), torch.randn(5, 8)], layout=torch.strided),
            "torch.strided",
        ),
        (lambda: torch.nested.nested_tensor([torch.randn(3), torch.randn(5)], layout=torch.jagged), "jagged and 2 dim"),
        (lambda: jagged(3, 5).transpose(1, 2), "ragged features"),
    ],
    ids=["strided", "ragged features", "as many rows in all as features"],
)
def test_other_nested_tensors_are_refused(make: Callable[[], Tensor], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        sparse_net()(make())


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_symbolic_traces_compute_the_same(packed: bool) -> None:
    net, x = sparse_net(packed=packed), torch.randn(2, 3, 8)
    traced = torch.fx.symbolic_trace(net)
    assert sum(node.target is torch.ops.blast.linear for node in traced.graph.nodes) == 2
    torch.testing.assert_close(traced(x), net(x), rtol=0, atol=0)
