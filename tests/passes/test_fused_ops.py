"""No model gets fewer fused ops than the table says."""

from __future__ import annotations

from collections import Counter

import pytest

from tests import fused_ops

pytestmark = [pytest.mark.usefixtures("fresh_dynamo"), pytest.mark.filterwarnings("ignore")]  # of models' own code
# What the passes find hard: halves of one layer, formulas, views, in-place calls, checkpoints, a cache, open sizes.
CHEAP = (
    "benchmark llama, training",
    "family gpt2, checkpoints",
    "family llama, static cache",
    "family modernbert, all layers",
    "family phi3, dynamic",
    "family phi3, packed",
    "zoo albert, all layers",
    "zoo biogpt",
    "zoo bitnet",
    "zoo falcon, all layers",
    "zoo mobilebert",
)
CASES = fused_ops.cases()


def check(name: str) -> None:
    assert fused_ops.lost(name, fused_ops.count(CASES[name]).kinds, fused_ops.table()[name]) == []


def test_the_table_names_every_model() -> None:
    assert list(fused_ops.table()) == list(CASES)


@pytest.mark.parametrize("name", CHEAP)
def test_has_no_fewer_fused_ops(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(CASES.keys() - CHEAP))
def test_has_no_fewer_fused_ops_in_any_model(name: str) -> None:
    check(name)


def test_says_what_is_lost() -> None:
    assert fused_ops.lost("net", Counter(mlp=2), {"mlp": 2}) == []
    assert fused_ops.lost("net", Counter(mlp=1, linear=2), {"mlp": 2}) == ["net: 1 mlp, not 2", "net: 2 linear, not 0"]
