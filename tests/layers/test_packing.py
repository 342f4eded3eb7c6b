"""`pack_`: what it leaves dense, and the dead blocks it removes when it is shown how layers are used."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import blast_compile as blast
from blast_compile.base.errors import LayerError, MaskError
from blast_compile.layers import pack, targets
from blast_compile.layers.layer import PackedLayer, SparseLayer, dense_weight
from tests.families import FAMILIES, output
from tests.models import classes, snapshot, sparse_layer

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

BLOCK = (4, 4)  # blocks under 8 run on the reference: these tests need no compiled kernel
THIRD = blast.BlockSparse(block=4, sparsity=1 / 3, targets="all")


def mostly_empty(model: nn.Module) -> nn.Module:
    """The MLPs of a model with random masks that keep one block in eight, and biases that matter."""
    torch.manual_seed(0)
    masks = {}
    for name, layer in targets.linear_layers(model):
        if targets.matches("mlp", name, layer):
            N, K = dense_weight(layer).shape
            masks[name] = blast.BlockMask(torch.rand(-(-N // 4), -(-K // 4)) < 1 / 8, (N, K), BLOCK)
            if isinstance(layer.bias, Tensor):
                nn.init.normal_(layer.bias)
    return blast.sparsify_(model.eval(), masks=masks)


def num_removed(model: nn.Module) -> dict[str, int]:
    return {n: layer.num_dead_blocks for n, layer in model.named_modules() if isinstance(layer, PackedLayer)}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_dead_blocks_of_a_model_are_removed_and_counted(name: str, caplog: pytest.LogCaptureFixture) -> None:
    family = FAMILIES[name]
    model, inputs = mostly_empty(family.build()), family.inputs(2, 9)
    num_kept = sum(layer.mask.nnz for layer in model.modules() if isinstance(layer, SparseLayer))
    with torch.no_grad():
        expected = output(model, inputs)
    with caplog.at_level(logging.INFO, "blast_compile"):
        assert blast.pack_(model, example_inputs=inputs) is model
    with torch.no_grad():  # constants move into a bias: another order of sums
        torch.testing.assert_close(output(model, inputs), expected, rtol=1e-5, atol=1e-6)
        other = family.inputs(3, 5)
        assert output(model, other).isfinite().all()
    removed = num_removed(model)
    assert min(sum(n for key, n in removed.items() if f".{layer}." in key) for layer in (0, 1)) > 0
    messages = [message for message in caplog.messages if not message.startswith("compiling")]
    assert messages == [f"{sum(removed.values())} of {num_kept} kept blocks in 2 MLPs are dead and removed"]
    assert num_kept - sum(removed.values()) == sum(
        layer.mask.nnz for layer in model.modules() if isinstance(layer, SparseLayer)
    )
    first, number = next((key, number) for key, number in removed.items() if number)
    assert repr(model.get_submodule(first)).endswith(f"packed, {number} dead blocks removed)")


class Net(nn.Module):
    """An MLP, and beside it whatever a test asks for."""

    def __init__(self, beside: Callable[[Net, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.beside = beside

    def mlp(self, x: Tensor) -> Tensor:
        y: Tensor = self.down(F.gelu(self.up(x)))
        return y

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(x) if self.beside is None else self.beside(self, x)


def packed_net(beside: Callable[[Net, Tensor], Tensor] | None = None, **settings: Any) -> tuple[nn.Module, Tensor]:
    """A net whose results are the same before and after packing, which is asserted, and its input."""
    torch.manual_seed(0)
    net = Net(beside).eval()
    masks = {}
    for name, shape in (("up", (32, 16)), ("down", (16, 32))):
        masks[name] = blast.BlockMask(torch.rand(shape[0] // 4, shape[1] // 4) < 1 / 8, shape, BLOCK)
    blast.sparsify_(net, masks=masks)
    x = torch.randn(3, 16)
    expected = net(x)
    blast.pack_(net, example_inputs=x, **settings)
    torch.testing.assert_close(net(x), expected)
    return net, x


@pytest.mark.parametrize("form", [lambda x: x, lambda x: (x,), lambda x: {"x": x}], ids=["tensor", "tuple", "mapping"])
def test_forms_of_example_inputs(form: Callable[[Tensor], Any]) -> None:
    net = blast.sparsify_(Net(), blast.BlockSparse(block=4, sparsity=0.9, targets="all"))
    expected = blast.pack_(copy.deepcopy(net), example_inputs=torch.randn(3, 16))
    assert num_removed(blast.pack_(net, example_inputs=form(torch.randn(3, 16)))) == num_removed(expected)


def test_a_compiled_model_is_packed_too() -> None:
    net = blast.sparsify_(Net(), blast.BlockSparse(block=4, sparsity=0.9, targets="all"))
    expected = blast.pack_(copy.deepcopy(net), example_inputs=torch.randn(3, 16))
    compiled: Any = torch.compile(net, backend="eager")
    assert blast.pack_(compiled, example_inputs=torch.randn(3, 16)) is compiled
    assert num_removed(net) == num_removed(expected)
    assert sum(num_removed(net).values()) > 0


def test_an_mlp_that_runs_twice_is_one_mlp() -> None:
    net, _ = packed_net(lambda net, x: net.mlp(net.mlp(x)))
    assert sum(num_removed(net).values()) > 0


@pytest.mark.parametrize(
    "beside",
    [
        lambda net, x: net.mlp(x) + net.up(x)[..., :16],
        lambda net, x: net.mlp(x) + net.down(x.repeat(1, 2)),
        lambda net, x: net.mlp(x) + net.down(F.silu(net.up(x))),
        lambda net, x: net.down(torch.tanh(net.up(x))),
    ],
    ids=["up alone", "down alone", "another activation", "no MLP"],
)
def test_layers_that_do_something_else_too_keep_their_blocks(beside: Callable[[Net, Tensor], Tensor]) -> None:
    net, _ = packed_net(beside)
    assert num_removed(net) == {"up": 0, "down": 0}


def test_a_run_without_an_mlp_is_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "blast_compile"):
        packed_net(lambda net, x: net.down(torch.tanh(net.up(x))))
    assert caplog.messages == [
        "no dead blocks are removed: no MLP fuses in the run on example_inputs; explain says why"
    ]


@pytest.mark.parametrize("is_tied", [False, True])
def test_a_bias_that_others_hold_stays(is_tied: bool) -> None:
    torch.manual_seed(0)
    net, other = Net(), nn.Linear(16, 16)
    model = nn.Sequential(net, other)
    other.bias = net.down.bias if is_tied else other.bias
    kept = torch.ones(8, 4, dtype=torch.bool)
    kept[3] = False  # whose hidden units are constants
    blast.sparsify_(model, THIRD, masks={"0.up": kept, "0.down": kept.new_ones(4, 8)})
    before, x = net.down.bias.clone(), torch.randn(2, 16)
    expected = model(x)
    blast.pack_(model, example_inputs=x, dense_below=0)
    torch.testing.assert_close(model(x), expected)
    assert torch.equal(net.down.bias, before) is is_tied
    assert num_removed(model)["0.down"] == (0 if is_tied else 4)


class Borrowed(nn.Module):
    """Reads a bias of its net itself, as Megatron's `skip_bias_add` does, or memory that the bias shares."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.net = how, Net()
        self.kept = [self.net.down.bias]
        self.register_buffer("shared", self.net.down.bias.detach())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y, bias = self.net(x), self.net.down.bias
        others = {
            "nobody": lambda: y,
            "product": lambda: bias * 2,
            "result": lambda: bias,
            "linear": lambda: F.linear(y, torch.ones(16, 16), bias),
            "kept": lambda: self.kept[0] + y,
            "shared": lambda: self.shared + y,
            "checkpoint": lambda: checkpoint(lambda z: z + bias, y, use_reentrant=False),
        }
        return y, others[self.how]()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize("how", ["nobody", "product", "result", "linear", "kept", "shared", "checkpoint"])
def test_a_bias_that_the_model_reads_itself_stays(how: str) -> None:
    torch.manual_seed(0)
    model = Borrowed(how).eval()
    kept = torch.ones(8, 4, dtype=torch.bool)
    kept[:4] = False
    blast.sparsify_(model, THIRD, masks={"net.up": kept, "net.down": kept.new_ones(4, 8)})
    x = torch.randn(3, 16)
    expected, before = model(x), model.net.down.bias.clone()
    blast.pack_(model, example_inputs=x, dense_below=0)
    torch.testing.assert_close(model(x), expected)
    assert num_removed(model)["net.down"] == (16 if how == "nobody" else 0)
    assert torch.equal(model.net.down.bias, before) is (how != "nobody")


def test_an_mlp_in_a_checkpoint_folds_into_its_bias() -> None:
    net, _ = packed_net(lambda net, x: checkpoint(net.mlp, x, use_reentrant=False))
    assert sum(num_removed(net).values()) > 0


def test_a_graph_break_is_an_error_and_changes_nothing() -> None:
    def broken(net: Net, x: Tensor) -> Tensor:
        torch._dynamo.graph_break()
        return net.mlp(x)

    net = blast.sparsify_(Net(broken), THIRD)
    before = snapshot(net)
    with pytest.raises(LayerError, match="captured as one graph, got a graph break .*; leave example_inputs out"):
        blast.pack_(net, example_inputs=torch.randn(3, 16))
    assert snapshot(net) == before


def test_layers_that_dense_serves_better_become_dense(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), Conv1D(16, 16))  # type: ignore[no-untyped-call]
    masks = {name: torch.arange(16).view(4, 4) >= number for name, number in (("0", 3), ("1", 4), ("2", 1))}
    masked = blast.sparsify_(model, blast.BlockSparse(block=4), masks=masks)
    x = torch.randn(5, 16)
    expected, before = masked(x), copy.deepcopy(masked)
    assert pytest.approx(0.2) == pack.BREAK_EVEN_SPARSITY, "the masks of this test stand on both sides of it"
    with caplog.at_level(logging.INFO, "blast_compile"):
        blast.pack_(model)
    assert classes(model) == {"0": "Linear", "1": "PackedLinear", "2": "Conv1D"}
    assert caplog.messages == [
        "0 becomes dense: 18.8 % of its blocks are zero",
        "2 becomes dense: 6.2 % of its blocks are zero",
    ]
    torch.testing.assert_close(model(x), expected)
    assert not [name for name in model.state_dict() if "block" in name and not name.startswith("1.")]
    assert not (vars(model[0]).keys() - vars(nn.Linear(1, 1)).keys())
    assert torch.equal(model.get_parameter("0.weight") == 0, ~sparse_layer(before, "0").mask.elements())
    blast.unpack_(model)
    assert classes(model) == {"0": "Linear", "1": "SparseLinear", "2": "Conv1D"}
    torch.testing.assert_close(model(x), expected)


def test_all_may_be_packed_and_all_may_be_dense() -> None:
    model = blast.sparsify_(nn.Sequential(nn.Linear(16, 16)), blast.BlockSparse(block=4, sparsity=0, targets="all"))
    assert classes(blast.pack_(copy.deepcopy(model), dense_below=0)) == {"0": "PackedLinear"}
    assert classes(blast.pack_(model)) == {"0": "Linear"}


@pytest.mark.parametrize("frozen", [True, False])
def test_a_layer_that_becomes_dense_keeps_requires_grad(frozen: bool) -> None:
    model = nn.Sequential(nn.Linear(16, 16)).requires_grad_(not frozen)
    blast.pack_(blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.1, targets="all")))
    assert {p.requires_grad for p in model.parameters()} == {not frozen}


@pytest.mark.parametrize("dense_below", [-0.1, 1.1, "0.2", None])
def test_a_threshold_that_is_no_fraction_is_an_error(dense_below: Any) -> None:
    model = blast.sparsify_(Net(), THIRD)
    with pytest.raises(MaskError, match="expected a sparsity from 0 to 1"):
        blast.pack_(model, dense_below=dense_below)
