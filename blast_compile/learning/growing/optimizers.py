"""What prune-and-grow needs of an optimizer: whether a step really happened, and its state of single blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class StepWatch:
    """Counts the steps that an optimizer really took since it was last asked, by hooks on it.

    before: called before each step, while gradients and weights are those of the step. `GradScaler` skips steps in two
    ways: it does not call the optimizer, or hands it `found_inf` (fused ones), which makes the step do nothing. A step
    of a subclass that calls that of its base is one, though torch runs the hooks for both.
    """

    def __init__(self, optimizer: Optimizer, before: Callable[[Optimizer], None]) -> None:
        self.optimizer = optimizer
        self._found_inf: list[Tensor | None] = []
        self._before = before
        self._has_begun = False
        self._handles = [
            optimizer.register_step_pre_hook(lambda optimizer, _args, _kwargs: self._begin(optimizer)),
            optimizer.register_step_post_hook(lambda optimizer, _args, _kwargs: self._see(optimizer)),
        ]

    def _begin(self, optimizer: Optimizer) -> None:
        if not self._has_begun:
            self._before(optimizer)
        self._has_begun = True

    def _see(self, optimizer: Any) -> None:
        if self._has_begun:
            self._found_inf.append(getattr(optimizer, "found_inf", None))
        self._has_begun = False

    @property
    def num_steps(self) -> int:
        """The steps since `forget`, those that did nothing left out."""
        return sum(found_inf is None or not found_inf.any() for found_inf in self._found_inf)

    def forget(self) -> None:
        """Starts counting anew."""
        self._found_inf.clear()
        self._has_begun = False

    def remove(self) -> None:
        """Takes the hooks away."""
        for handle in self._handles:
            handle.remove()


# With no gradient, no moment and no weight, these do nothing to a number. A subclass may.
_ELEMENTWISE = (
    torch.optim.SGD,
    torch.optim.Adam,
    torch.optim.AdamW,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.Adagrad,
    torch.optim.Adadelta,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.ASGD,
)


def keeps_zeros(optimizer: Optimizer) -> bool:
    """Whether dropped blocks, without gradient and moments, surely stay zero in a step, as under Muon they do not."""
    return type(optimizer) in _ELEMENTWISE


def innermost(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside those that wrap it, as Accelerate's do: hooks of a wrapper are never called."""
    inner = getattr(optimizer, "optimizer", None)
    return innermost(inner) if isinstance(inner, Optimizer) else optimizer


def parameters_of(optimizer: Optimizer) -> Iterable[Tensor]:
    """All parameters that an optimizer updates."""
    return (parameter for group in optimizer.param_groups for parameter in group["params"])


def states_like(optimizer: Optimizer, weight: Tensor) -> list[Tensor]:
    """The optimizer's state tensors of the weight's own shape: moments, momenta, master copies.

    Factored state (Adafactor's `row_var` and `col_var`) has other shapes, and is left alone: it holds means over rows
    and columns, out of which a pruned block's share fades as that of any old gradient.
    """
    state = optimizer.state.get(weight, {})
    return [value for value in state.values() if isinstance(value, Tensor) and value.shape == weight.shape]
