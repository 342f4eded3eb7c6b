"""FLOP counters see sparse layers: the kept work, forward and backward, eager and compiled, or the dense count."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import blast_compile as blast
from blast_compile.backend.export import fuse_
from blast_compile.ops import flops
from blast_compile.ops.register import ABI
from tests.models import sparse_layer

M, N, K, H, B = 6, 16, 32, 64, 8

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


class Net(nn.Module):
    def __init__(self, is_gated: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(K, H), nn.Linear(H, N)
        self.gate = nn.Linear(K, H) if is_gated else None

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.up(x)) if self.gate is None else F.silu(self.gate(x)) * self.up(x)
        y: Tensor = self.down(hidden)
        return y


def net(*, is_gated: bool = False, form: str = "masked") -> tuple[nn.Module, int, int]:
    """A net, and the elements of its weights: in kept blocks, as it stores them, and in all."""
    torch.manual_seed(0)
    model = blast.sparsify_(Net(is_gated), blast.BlockSparse(block=B, sparsity=0.75, targets="all"))
    names = ["up", "down", *["gate"] * is_gated]
    if form == "packed":
        blast.pack_(model)
        kept = sum(sparse_layer(model, name).weight.numel() for name in names)
    else:
        kept = sum(sparse_layer(model, name).mask.nnz for name in names) * B * B
    return model, kept, sum(sparse_layer(model, name).shape[0] * sparse_layer(model, name).shape[1] for name in names)


def counted(run: Any, *args: Any, **options: Any) -> int:
    with FlopCounterMode(display=False, **options) as counter:
        run(*args)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_forward(form: str, is_gated: bool, is_compiled: bool) -> None:
    model, kept, whole = net(form=form, is_gated=is_gated)
    if is_compiled:
        model.compile(backend="blast")
    x = torch.randn(2, M // 2, K)
    with torch.no_grad():
        model(x)
        assert counted(model, x) == 2 * M * kept
        assert counted(model, x, custom_mapping=flops.dense_formulas()) == 2 * M * whole
    assert kept <= 0.3 * whole


def step(run: Any, x: Tensor) -> None:
    torch.autograd.backward(run(x).sum())


@pytest.mark.parametrize("is_gated", [False, True])
@pytest.mark.parametrize("is_compiled", [False, True])
def test_backward(is_gated: bool, is_compiled: bool) -> None:
    """As for the dense twin, less what is dropped. Dynamo runs a compiled model as it is written, under the counter."""
    model, kept, whole = net(is_gated=is_gated)
    if is_compiled:
        model.compile(backend="blast", options={"delegate": "aot_eager"})
    x = torch.randn(M, K, requires_grad=True)
    step(model, x)
    sparse, dense = counted(step, model, x), counted(step, model, x, custom_mapping=flops.dense_formulas())
    assert dense == counted(step, Net(is_gated), x)
    assert sparse == dense * kept // whole, "each layer keeps a quarter"


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("is_gated", [False, True])
def test_fused_ops(is_gated: bool, form: str) -> None:
    """As graphs call them that were captured before."""
    model, kept, whole = net(form=form, is_gated=is_gated)
    program = fuse_(torch.export.export(model, (torch.randn(M, K),)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        program.module()(torch.randn(M, K))
    op = torch.ops.blast.gated_mlp if is_gated else torch.ops.blast.mlp
    assert counter.get_flop_counts()["Global"] == {op: 2 * M * kept}
    with torch.no_grad():
        dense = counted(program.module(), torch.randn(M, K), custom_mapping=flops.dense_formulas())
    assert dense == 2 * M * whole
    gate = [sparse_layer(model, "gate"), sparse_layer(model, "up")] if is_gated else []
    pair = [tensor for layer in gate for tensor in (layer.weight, layer.index_operand(), layer.bias)]
    stored = sum(layer.weight.numel() if form == "packed" else layer.mask.nnz * B * B for layer in gate)
    if is_gated:
        args = (torch.randn(M, K), *pair, H, [B, B], "silu", ABI)
        with torch.no_grad():
            assert counted(torch.ops.blast.gated_linear, *args) == 2 * M * stored


def test_a_mask_that_changes_is_read_anew() -> None:
    model = blast.sparsify_(nn.Sequential(nn.Linear(K, N)), blast.BlockSparse(block=B, sparsity=0.5, targets="all"))
    layer, x = sparse_layer(model, "0"), torch.randn(M, K)
    for sparsity in (0.5, 0.75, 0.0):
        layer.set_mask_(blast.BlockMask.from_weight(layer.weight, sparsity, (B, B)))
        assert counted(model, x) == 2 * M * N * K * (1 - sparsity)


def test_blocks_over_an_edge_are_never_more_than_the_layer() -> None:
    model = blast.sparsify_(nn.Sequential(nn.Linear(20, 20)), blast.BlockSparse(block=16, sparsity=0, targets="all"))
    assert counted(model, torch.randn(M, 20)) == 2 * M * 400
    assert counted(blast.pack_(model, dense_below=0), torch.randn(M, 20)) == 2 * M * 400


def test_without_values_a_mask_counts_as_full() -> None:
    model, _, whole = net()
    assert counted(model.to("meta"), torch.randn(M, K, device="meta")) == 2 * M * whole


def test_norms_count_where_a_probe_is_on() -> None:
    grad, x = torch.randn(M, N), torch.randn(M, K)
    for on in (0.0, 1.0):
        probe = torch.full((N // B, K // B), on)
        assert counted(torch.ops.blast.block_norms, grad, x, probe, [B, B], 0) == on * 2 * M * N * K


def test_hidden_gradients_count_one_product() -> None:
    layer = sparse_layer(net()[0], "down")
    z, grad = torch.randn(M, H), torch.randn(M, N)
    args = (grad, layer.weight, layer.index_operand(), z, H, [B, B], "relu", 0)
    with torch.no_grad():
        assert counted(torch.ops.blast.hidden_grad, *args) == 2 * M * layer.mask.nnz * B * B


@pytest.mark.parametrize("order", ["counter first", "counter last"])
def test_the_counter_may_be_imported_before_and_after(order: str) -> None:
    """In a fresh process; it is not imported for nothing, as it imports Triton."""
    ours = "import sys, torch, blast_compile.ops\n"
    theirs = "from torch.utils.flop_counter import FlopCounterMode, flop_registry\n"
    is_there = "assert 'torch.utils.flop_counter' not in sys.modules\n"
    code = theirs + ours if order == "counter first" else ours + is_there + theirs
    code += "assert torch.ops.blast.linear in flop_registry and torch.ops.aten.mm in flop_registry"
    subprocess.run([sys.executable, "-c", code], check=True)
