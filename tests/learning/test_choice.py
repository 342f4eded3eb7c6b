"""The choice of blocks against a slow twin in plain Python, over sizes, budgets, minima and ties."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blast_compile.learning.growing.choice import Move, Pool, random_scores, renewed


def twin(pool: Pool, move: Move) -> list[bool]:
    """The rule as one would say it, block by block."""
    blocks = range(len(pool.kept))
    row_of, before = pool.rows.tolist(), [block for block in blocks if pool.kept[block]]
    rows = {row: [block for block in blocks if row_of[block] == row] for row in set(row_of)}
    minimum = {row: min(move.min_per_row, len(members)) for row, members in rows.items()}
    held = {row: min(minimum[row], len([b for b in members if b in before])) for row, members in rows.items()}
    lacking = {row: minimum[row] - held[row] for row in rows}
    target = max(move.num_kept, sum(minimum.values()))
    num_grown = round(move.grow_frac * target)
    num_grown = max(num_grown, sum(lacking.values()), target - len(before))
    num_grown = min(num_grown, len(pool.kept) - len(before), target - sum(held.values()))
    kept = pick(pool.scores, before, target - num_grown, row_of, held)
    candidates = [block for block in blocks if block not in before]
    grown: list[int] = []
    if pool.norms is not None and move.gradient_frac > 0:
        by_gradient = max(round(move.gradient_frac * num_grown), sum(lacking.values()))
        grown = pick(pool.norms, candidates, by_gradient, row_of, lacking)
        lacking = dict.fromkeys(rows, 0)
    left = [block for block in candidates if block not in grown]
    draws = random_scores(f"{move.seed}/{pool.name}", len(pool.kept))
    grown += pick(draws, left, num_grown - len(grown), row_of, lacking)
    return [block in kept or block in grown for block in blocks]


def pick(scores: Tensor, candidates: list[int], count: int, row_of: list[int], least: dict[int, int]) -> list[int]:
    """Best first, each row's share before all others; among equals the lowest number."""
    ranked = sorted(candidates, key=lambda block: (-float(scores[block]), block))
    first: list[int] = []
    for block in ranked:
        if sum(row_of[other] == row_of[block] for other in first) < least[row_of[block]]:
            first.append(block)
    return (first + [block for block in ranked if block not in first])[:count]


@st.composite
def pools(draw: st.DrawFn) -> Pool:
    """Rows of different lengths, as of several layers; few different scores, so that many tie."""
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    size = sum(lengths)

    def numbers(least: int) -> Tensor:
        return torch.tensor(draw(st.lists(st.integers(least, 3), min_size=size, max_size=size)), dtype=torch.float32)

    kept = torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    rows = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return Pool("pool", kept, numbers(-3), draw(st.sampled_from([None, numbers(0)])), rows)


FRACTIONS = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0])


@given(pools(), st.data(), FRACTIONS, FRACTIONS, st.integers(0, 3))
def test_choice_equals_its_twin(
    pool: Pool, data: st.DataObject, grow_frac: float, gradient_frac: float, min_per_row: int
) -> None:
    num_kept = data.draw(st.integers(0, pool.kept.numel()))
    move = Move(num_kept, grow_frac, gradient_frac, min_per_row, "seed")
    after = renewed(pool, move)
    assert after.tolist() == twin(pool, move)
    least = torch.bincount(pool.rows).clamp(max=min_per_row)
    assert int(after.sum()) == max(num_kept, int(least.sum()))
    assert (torch.bincount(pool.rows[after], minlength=len(least)) >= least).all()


def test_a_pruned_block_does_not_return_in_the_same_step() -> None:
    kept = torch.tensor([True] * 4 + [False] * 4)
    pool = Pool("pool", kept, torch.arange(8.0), torch.tensor([9.0, 9, 9, 9, 1, 2, 3, 4]), torch.zeros(8).long())
    after = renewed(pool, Move(num_kept=4, grow_frac=0.5, gradient_frac=1.0, min_per_row=0, seed=""))
    assert after.tolist() == [False, False, True, True, False, False, True, True]


def test_more_growth_than_candidates_prunes_less() -> None:
    kept = torch.tensor([True] * 7 + [False])
    pool = Pool("pool", kept, torch.arange(8.0), torch.zeros(8), torch.zeros(8).long())
    after = renewed(pool, Move(num_kept=6, grow_frac=0.9, gradient_frac=1.0, min_per_row=0, seed=""))
    assert after.tolist() == [False, False, True, True, True, True, True, True]


def test_random_growth_depends_on_seed_and_pool_alone() -> None:
    first = random_scores("0/100/mlp.fc1", 50)
    assert torch.equal(first, random_scores("0/100/mlp.fc1", 50))
    assert not torch.equal(first, random_scores("0/100/mlp.fc2", 50))
    assert not torch.equal(first, random_scores("1/100/mlp.fc1", 50))
