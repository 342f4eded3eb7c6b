"""Every program that was once rewritten wrongly computes what eager mode computes, and each guard is needed for one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.fx import Node

from blast_compile.base import compat
from blast_compile.base.errors import BlastError
from blast_compile.passes import calls, drop_identities, name_activations
from blast_compile.passes.effects import Effects
from blast_compile.passes.lift_views import _Places, _sizes
from blast_compile.passes.memory import Memory
from tests.passes.faults import FAULTS, Net, check
from tests.passes.twins import Graphs

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.mark.parametrize("name", FAULTS)
def test_stays_what_it_is(name: str, net: Net) -> None:
    expected = check(FAULTS[name], net)
    assert not expected.error


def test_an_argument_may_be_written_to_before_the_backward_pass(net: Net) -> None:
    """A copy of it is saved; were it a view instead, torch would refuse."""
    check_written_before_backward(net)


def check_written_before_backward(net: Net) -> None:
    net.body = lambda m, x: m.up(x.transpose(0, 1).reshape(-1, 8).view(x.shape[1], x.shape[0], 8))
    torch._dynamo.reset()
    x = torch.ones(2, 3, 8)
    y = torch.compile(net, backend=Graphs())(x)
    x.zero_()
    y.sum().backward()


def _without(name: str) -> Callable[..., Any]:
    """`Effects.hazard_between` that does not look at one of what it looks at."""

    def hazard_between(self: Effects, nodes: Any, plain: Any = Effects.hazard_between) -> Any:
        before = getattr(self, name)
        setattr(self, name, [])
        try:
            return plain(self, nodes)
        finally:
            setattr(self, name, before)

    return hazard_between


def _open_list(node: Any, plain: Any = calls.effect_of) -> Any:
    return "fresh" if plain(node) == "unknown" else plain(node)


def _any_before(_: _Places, place: Node, source: Node, sizes: Any) -> Any:
    return (user for user in source.users if user < place and _sizes(user) == sizes and user.args[0] is source)


BEFORE_BACKWARD = "an argument is written to before the backward pass"
GUARDS: dict[str, tuple[Any, str, Any, str]] = {
    "writes between": (Effects, "hazard_between", _without("_writes"), "add_"),
    "modes between": (Effects, "hazard_between", _without("_markers"), "no_grad between"),
    "closed list": (calls, "effect_of", _open_list, "batch_norm"),
    "gradient kept": (Effects, "keeps_gradient", lambda *_: True, "view under no_grad"),
    "gradient kept in place": (Effects, "keeps_gradient", lambda *_: True, "relu_ under no_grad"),
    "inference kept": (Effects, "keeps_inference", lambda *_: True, "written in place in inference mode"),
    "gradient recorded": (Effects, "records_gradient", lambda *_: False, "clamp"),
    "written behind": (Effects, "is_written_behind", lambda *_: False, "saved for the backward pass and written to"),
    "reshaped behind": (Effects, "is_reshaped_behind", lambda *_: False, "a view changes its strides"),
    "sharing shown": (Effects, "shows_sharing", lambda *_: False, "a copy of the input is written to"),
    "sharing shown by results": (Memory, "of_results", lambda *_: set(), "a copy is returned"),
    "sharing shown by arguments": (Memory, "of_arguments", lambda *_: set(), BEFORE_BACKWARD),
    "slopes": (name_activations, "_has_slope", lambda *_: True, "relu of the other sign"),
    "roots": (name_activations, "_is_root", lambda *_: False, "relu by a root"),
    "copy of what is saved": (drop_identities, "_is_saved", lambda *_: False, "a copy of what is saved is written to"),
    "old copy saved": (_Places, "_is_saved_and_written", lambda *_: False, "an old copy is written to behind"),
    "old copy as good": (_Places, "_views_before", _any_before, "an old copy serves"),
    "all rows": (compat, "known_equal", lambda *_: True, "rows of a view"),
}


@pytest.mark.parametrize(("place", "name", "removed", "fault"), GUARDS.values(), ids=GUARDS)
def test_every_guard_is_needed(
    place: Any, name: str, removed: Any, fault: str, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, name, removed)
    run = check_written_before_backward if fault == BEFORE_BACKWARD else partial(check, FAULTS[fault])
    with pytest.raises((AssertionError, RuntimeError, BlastError)):
        run(net)
