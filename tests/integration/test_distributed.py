"""Training on two processes over gloo: DDP and FSDP2 give the gradients of one process, fused where possible."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from blast_compile.base import compat
from blast_compile.layers.layer import MaskedLayer
from blast_compile.layers.probe import attach_probe_
from blast_compile.masks.mask import BlockMask
from blast_compile.passes.vocabulary import sparse_kind
from tests.nets import sparse_net, x_of
from tests.ranks import NUM_RANKS, on_ranks

OPTIONS: dict[str, Any] = {"delegate": "aot_eager", "fallback": "error"}


def watch_graphs() -> list[tuple[list[str], set[str]]]:
    """Of each graph that goes to a delegate: our ops, and the types of its inputs."""
    seen: list[tuple[list[str], set[str]]] = []
    compile_with = compat.compile_with

    def watched(delegate: str, gm: Any, inputs: Any, *rest: Any) -> Callable[..., object]:
        ours: list[str] = [kind for node in gm.graph.nodes if (kind := sparse_kind(node))]
        seen.append((ours, {type(value).__name__ for value in inputs}))
        return compile_with(delegate, gm, inputs, *rest)

    compat.compile_with = watched  # type: ignore[assignment]
    return seen


def flip_mask(layer: nn.Module) -> None:
    assert isinstance(layer, MaskedLayer)
    layer.set_mask_(BlockMask(~layer.mask.kept, layer.shape, layer.block))


def step(run: Any, model: nn.Module, x: torch.Tensor) -> None:
    model.zero_grad()
    torch.autograd.backward(run(x).square().mean())


def train_with_ddp(rank: int) -> None:
    dist._DEFAULT_FIRST_BUCKET_BYTES = 200  # type: ignore[attr-defined]
    graphs = watch_graphs()
    model, alone, x = sparse_net(), sparse_net(), x_of(6, 8)
    # Buckets of 524 bytes hold little more than one layer, so that both MLPs lie across several.
    run = torch.compile(DistributedDataParallel(model, bucket_cap_mb=0.0005), backend="blast", options=OPTIONS)
    for number in range(4):
        if number == 2:
            flip_mask(alone.gates[1])
            if rank == 0:
                flip_mask(model.gates[1])  # the next forward broadcasts buffers from rank 0
        if number == 3:  # values that nothing tells of
            for net in (model, alone):
                net.downs[0].weight.data.mul_(-2.0)  # type: ignore[operator]
        step(run, model, x.chunk(NUM_RANKS)[rank])
        step(alone, alone, x)
        for parameter, expected in zip(model.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(parameter.grad, expected.grad)
        for (name, buffer), same in zip(model.named_buffers(), alone.buffers(), strict=True):
            assert torch.equal(buffer, same), name
    assert len(graphs) > 1, "the graph was cut at buckets"
    assert sum(len(ours) for ours, _ in graphs) < 6, "what lies within one piece is fused"
    assert all("FakeTensor" in types for _, types in graphs)
    check_probes(rank)


def check_probes(rank: int) -> None:
    """Each rank has the norms of its own tokens, where its own flags ask for them: probes are no buffers."""
    model, alone, x = sparse_net(), sparse_net(), x_of(6, 8).chunk(NUM_RANKS)[rank]
    probes, expected = (
        [attach_probe_(m) for m in net.modules() if isinstance(m, MaskedLayer)] for net in (model, alone)
    )
    parallel = DistributedDataParallel(model)
    compiled = torch.compile(DistributedDataParallel(model), backend="blast", options=OPTIONS)
    for run, flag in ((parallel, 1.0), (parallel, 0.0), (compiled, 0.0), (compiled, 1.0), (compiled, 0.0)):
        with torch.no_grad():
            for probe, same in zip(probes, expected, strict=True):
                probe.grad = same.grad = None
                same.fill_(flag)
                probe.fill_(flag)
        step(run, model, x)
        step(alone, alone, x)
        for probe, same in zip(probes, expected, strict=True):
            assert (probe.is_leaf, probe.requires_grad) == (True, True)
            assert torch.equal(probe, same)
            assert same.grad is not None
            assert (same.grad.max() > 0) == (flag > 0)
            torch.testing.assert_close(probe.grad, same.grad)


def test_ddp_with_layers_across_buckets_trains_as_one_process_does(tmp_path: Path) -> None:
    on_ranks(train_with_ddp, tmp_path)


def train_with_fsdp(rank: int) -> None:
    graphs = watch_graphs()
    mesh = init_device_mesh("cpu", (NUM_RANKS,))
    x = x_of(6, 8)
    for is_compiled in (False, True):
        model, alone = sparse_net(), sparse_net()
        fully_shard(model, mesh=mesh)
        run: Any = torch.compile(model, backend="blast", options=OPTIONS) if is_compiled else model
        optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in (model, alone)]
        for number in range(3):
            if number == 2:
                flip_mask(model.gates[1])  # buffers are whole on every rank
                flip_mask(alone.gates[1])
            step(run, model, x.chunk(NUM_RANKS)[rank])
            step(alone, alone, x)
            for parameter, expected in zip(model.parameters(), alone.parameters(), strict=True):
                assert parameter.grad is not None
                torch.testing.assert_close(parameter.grad.full_tensor(), expected.grad)  # type: ignore[attr-defined]
            for optimizer in optimizers:
                optimizer.step()
    assert [ours for ours, _ in graphs] == [["gated_mlp", "gated_mlp"]]


def test_fsdp_trains_as_one_process_does(tmp_path: Path) -> None:
    on_ranks(train_with_fsdp, tmp_path)
