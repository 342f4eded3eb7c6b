"""Random programs show the same in eager mode and rewritten: results, gradients, arguments, and who shares memory."""

from __future__ import annotations

from collections import Counter

import hypothesis
import pytest
import torch
from hypothesis import given, settings

from tests.passes.faults import Net
from tests.passes.programs import Program, programs
from tests.passes.twins import Graphs, compare

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo"),
    # autocast says so of itself where it is asked for what it cannot do, and Dynamo of checkpoints
    pytest.mark.filterwarnings("ignore"),
]
LEAST_FRAC = 0.3


def check(program: Program, net: Net, shares: Counter[str]) -> None:
    net.body = program.compiled()
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(1))
    z = x.view(2, 3, 8) if program.alias else x.flip(0).contiguous()
    graphs = Graphs()
    expected = compare(net, [x, z], grad=program.grad, tolerance=0.05 if program.rounds else 1e-4, graphs=graphs)
    shares["refused by torch" if expected.error else "programs"] += 1
    if not expected.error:
        shares["fuse something"] += graphs.fuses
        shares["write to shared memory"] += graphs.writes_shared_memory
        shares["change modes"] += graphs.changes_mode
        shares["need gradients"] += any(value is not None for value in expected.gradients.values())


def run(number: int) -> Counter[str]:
    net, shares = Net(), Counter[str]()

    @settings(
        max_examples=number,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @given(programs())
    def every(program: Program) -> None:
        check(program, net, shares)

    every()
    return shares


def assert_shares(shares: Counter[str]) -> None:
    print(dict(shares))
    for name in ("fuse something", "write to shared memory", "change modes", "need gradients"):
        assert shares[name] >= LEAST_FRAC * shares["programs"], name


def test_200_programs() -> None:
    assert_shares(run(200))


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_2000_programs() -> None:
    assert_shares(run(2000))
