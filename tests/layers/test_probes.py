"""Probes of layers: what asks for the norms of gradient blocks, through compiling, copying, moving and packing."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.pytorch_utils import Conv1D

import blast_compile as blast
from blast_compile.layers.layer import MaskedLayer
from blast_compile.layers.probe import attach_probe_, detach_probe_
from blast_compile.masks.layout import to_blocks
from tests.models import Mlp
from tests.nets import BLOCK, Counted, Net, compiled, sparse_net, x_of

Clone = Callable[[nn.Module], nn.Module]
SPARSE = blast.BlockSparse(block=(4, 8), sparsity=0.6)
BUFFERS = [f"{layer}.{name}" for layer in ("fc1", "fc2") for name in ("block_mask", "block_size")]


def masked(model: nn.Module) -> list[MaskedLayer]:
    return [layer for layer in model.modules() if isinstance(layer, MaskedLayer)]


def fill(model: nn.Module, value: float) -> None:
    with torch.no_grad():
        for layer in masked(model):
            attach_probe_(layer).fill_(value)


def backward(model: nn.Module, run: Any, x: Tensor) -> list[Tensor]:
    """The gradients of the probes alone."""
    model.zero_grad()
    for layer in masked(model):
        attach_probe_(layer).grad = None
    torch.autograd.backward(run(x).float().square().sum())
    return [cast(Tensor, attach_probe_(layer).grad) for layer in masked(model)]


@pytest.mark.parametrize("delegate", ["eager", "aot_eager", "inductor"])
def test_compiled_graphs_carry_probes_and_never_recompile(delegate: str) -> None:
    model, x, counted = sparse_net(), x_of(5, 8), Counted(delegate)
    fill(model, 0.0)
    call = torch.compile(model, backend=counted, fullgraph=True)
    for value in (0.0, 1.0, 0.0):
        for got, expected in zip(backward(model, call, x), backward(model, model, x), strict=True):
            torch.testing.assert_close(got, expected)
            assert (got.max() > 0) == (value > 0)
        fill(model, 1.0 - value)
    assert counted.num_calls == 1


def test_micro_batches_add_up() -> None:
    model, x = sparse_net(), x_of(6, 8)
    fill(model, 1.0)
    parts = [backward(model, model, part) for part in x.chunk(2)]
    for layer in masked(model):
        attach_probe_(layer).grad = None
    for part in x.chunk(2):
        torch.autograd.backward(model(part).square().sum())
    for layer, first, second in zip(masked(model), *parts, strict=True):
        torch.testing.assert_close(attach_probe_(layer).grad, first + second)


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
def test_checkpointed_and_autocast_layers_tell_norms(is_compiled: bool) -> None:
    class Checkpointed(Net):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return cast(Tensor, checkpoint(super().forward, x, use_reentrant=False))

    model = blast.sparsify_(Checkpointed(), blast.BlockSparse(block=BLOCK, sparsity=0.5, targets="all"))
    plain, x = sparse_net(), x_of(5, 8)
    plain.load_state_dict(model.state_dict())
    for net in (model, plain):
        fill(net, 1.0)
    found = backward(model, compiled(model, fallback="error") if is_compiled else model, x)
    for got, expected in zip(found, backward(plain, plain, x), strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0.05, atol=0.05)  # hidden values have 8 bits


def test_frozen_weights_and_transposed_layers_tell_norms() -> None:
    layer = Conv1D(12, 8)  # type: ignore[no-untyped-call]  # weight [8, 12]
    model = blast.sparsify_(nn.ModuleDict({"mlp": layer}), blast.BlockSparse(block=4, sparsity=0.5, targets="all"))
    fill(model, 1.0)
    layer.weight.requires_grad_(False)
    x = torch.randn(5, 8)
    (norms,) = backward(model, layer, x)
    blocks = to_blocks((2 * layer(x).detach()).t() @ x, (4, 4))
    torch.testing.assert_close(norms, blocks.flatten(2).norm(dim=-1))
    assert layer.weight.grad is None


def probed_mlp() -> Mlp:
    model = blast.sparsify_(Mlp(), SPARSE)
    fill(model, 1.0)
    return model


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])  # noqa: S301
def test_copies_have_probes_of_their_own(clone: Clone) -> None:
    model = probed_mlp()
    other = clone(model)
    fill(model, 0.0)
    x = torch.randn(3, 40)
    for norms in backward(other, other, x):
        assert norms.max() > 0
    for norms in backward(model, model, x):
        assert norms.max() == 0


def test_checkpoints_and_optimizers_know_no_probes() -> None:
    model, plain = probed_mlp(), blast.sparsify_(Mlp(), SPARSE)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert dict(model.named_parameters()).keys() == dict(plain.named_parameters()).keys()
    model.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(model.state_dict(), strict=True)


@pytest.mark.parametrize("move", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.type(torch.float64)])
def test_dtypes_leave_probes_alone(move: Clone) -> None:
    model = probed_mlp()
    backward(model, model, torch.randn(3, 40))
    before = [(attach_probe_(layer), attach_probe_(layer).grad) for layer in masked(model)]
    model = move(model)  # type: ignore[assignment]
    for layer, (probe, grad) in zip(masked(model), before, strict=True):
        assert layer.probe is probe
        assert probe.grad is grad
    (dtype,) = {parameter.dtype for parameter in model.parameters()}
    for norms in backward(model, model, torch.randn(3, 40).to(dtype)):
        assert norms.dtype == torch.float32
        assert norms.max() > 0


def test_probes_follow_to_a_device() -> None:
    model = probed_mlp()
    backward(model, model, torch.randn(3, 40))
    model.to("meta")
    for layer in masked(model):
        probe = attach_probe_(layer)
        assert (probe.device.type, probe.is_leaf, probe.requires_grad) == ("meta", True, True)
        assert cast(Tensor, probe.grad).is_meta
    model.to_empty(device="cpu")
    for layer in masked(model):
        probe = attach_probe_(layer)
        assert (probe.device.type, probe.is_leaf, probe.requires_grad, probe.grad) == ("cpu", True, True, None)
        assert probe.count_nonzero() == 0, "no memory that nobody wrote asks for norms"


def test_attach_and_detach() -> None:
    model = probed_mlp()
    layer = masked(model)[0]
    probe = attach_probe_(layer)
    assert (attach_probe_(layer) is probe, probe.shape, probe.dtype) == (True, layer.mask.kept.shape, torch.float32)
    detach_probe_(layer)
    detach_probe_(layer)
    torch.autograd.backward(model(torch.randn(3, 40)).sum())
    assert probe.grad is None
    assert [name for name, _ in model.named_buffers()] == BUFFERS


def test_other_forms_have_no_probes() -> None:
    model, x = probed_mlp(), torch.randn(3, 40)
    expected = model(x)
    assert blast.explain(model, x).counts == {"mlp": 1}
    for change in (blast.pack_, blast.unpack_):
        change(model)
        assert all("probe" not in vars(layer) for layer in model.modules())
        torch.testing.assert_close(model(x), expected)
    fill(model, 1.0)
    blast.pack_(model, dense_below=1.0)
    assert not list(model.buffers())
    assert vars(model.fc1).keys() == vars(nn.Linear(1, 1)).keys()
    assert not model.fc1._non_persistent_buffers_set
