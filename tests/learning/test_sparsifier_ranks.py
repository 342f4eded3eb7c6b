"""Two processes under DDP choose the same blocks, those of all tokens together."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from blast_compile.learning import Constant, Sparsifier
from tests.learning.learning import backward, batch, config, masks, mlp
from tests.ranks import NUM_RANKS, on_ranks


def train_with_ddp(rank: int) -> None:
    model = DistributedDataParallel(mlp())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, config(schedule=Constant(0.6, 9), score="saliency"), optimizer)
    assert set(sparsifier.layers) == {"fc1", "fc2"}, "names without the wrapper's"
    num_differing = 0
    for step in range(9):
        optimizer.zero_grad()
        backward(model, batch(step, size=8).chunk(NUM_RANKS)[rank])
        own = [layer.probe.grad.clone() for layer in sparsifier.layers.values()]  # type: ignore[union-attr]
        optimizer.step()
        before = masks(sparsifier)
        record = sparsifier.step()
        for probe, (name, kept) in zip(own, masks(sparsifier).items(), strict=True):
            everywhere = [torch.empty_like(kept) for _ in range(NUM_RANKS)]
            dist.all_gather(everywhere, kept)
            assert all(torch.equal(kept, other) for other in everywhere), "masks are alike"
            if record is not None:
                dropped = ~before[name]
                total = probe.clone()
                dist.all_reduce(total)
                num_grown, grown = record.layers[name].grown, kept & dropped
                chosen, alone = (
                    torch.zeros(kept.numel(), dtype=torch.bool)
                    .index_fill(0, norms.masked_fill(~dropped, -1).flatten().topk(num_grown).indices, True)
                    .view_as(kept)
                    for norms in (total, probe)
                )
                assert torch.equal(grown, chosen), "growth is by the norms of all ranks"
                num_differing += not torch.equal(grown, alone)
    assert len(sparsifier.history) == 3
    assert num_differing, "a rank by itself would have chosen others"


def test_ranks_choose_the_same_blocks(tmp_path: Path) -> None:
    on_ranks(train_with_ddp, tmp_path)
