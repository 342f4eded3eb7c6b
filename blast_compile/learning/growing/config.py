"""What prune-and-grow should do, as one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from blast_compile.base.errors import OptionsError
from blast_compile.layers.sparsify import BlockSparse
from blast_compile.learning.growing.schedules import Always, Fraction, Schedule, check_fraction, check_steps
from blast_compile.learning.growing.scores import SCORES, Score
from blast_compile.masks.mask import check_sparsity


@dataclass(frozen=True)
class Mixed:
    """Growth by gradient for `gradient_frac` of the new blocks, random for the others ("Mixed Sparsity Training")."""

    gradient_frac: float = 0.5

    def __post_init__(self) -> None:
        check_fraction("gradient fraction", self.gradient_frac)


Growth = Literal["gradient", "random"] | Mixed
Budget = Literal["uniform", "global"]


@dataclass(frozen=True)
class PruneAndGrow:
    """How a `Sparsifier` learns masks. The defaults are our own choice; BLaST's own values are not public.

    schedule: sparsity by step, and from when to when masks change. layers: which layers and which blocks; its
    `sparsity` says nothing here. interval: optimizer steps from one update to the next; the schedule's last step is
    always one. grow_frac: which part of the kept blocks an update replaces, a number or a `Fraction` of the step.
    score: what makes a block worth keeping (`scores.py`). growth: what makes a dropped one worth trying: the norm of
    its gradient, chance, or both (`Mixed`). budget: `"uniform"` gives every layer the same sparsity, `"global"`
    compares blocks of all layers. min_blocks_per_row: the least number of blocks in each block row; goes before the
    schedule. seed: of random growth.
    """

    schedule: Schedule
    layers: BlockSparse = field(default_factory=BlockSparse)
    interval: int = 100
    grow_frac: float | Fraction = 0.1
    score: Score = "l2"
    growth: Growth = "gradient"
    budget: Budget = "uniform"
    min_blocks_per_row: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises `OptionsError` where a field has none of its values."""
        _check_choice("score", self.score, SCORES)
        _check_choice("budget", self.budget, ("uniform", "global"))
        if not isinstance(self.growth, Mixed):
            _check_choice("growth", self.growth, ("gradient", "random"), "or Mixed(...)")
        for name, least in (("interval", 1), ("min_blocks_per_row", 0), ("seed", 0)):
            number = getattr(self, name)
            if type(number) is not int or number < least:
                raise OptionsError(f"expected {name} to be an int from {least} on, got {number!r}")
        if not isinstance(self.layers, BlockSparse):
            raise OptionsError(f"expected layers to be a BlockSparse, got {self.layers!r}")
        _check_schedule(self.schedule)
        if not hasattr(self.grow_frac, "at"):
            check_fraction("grow_frac", self.grow_frac)

    @property
    def gradient_frac(self) -> float:
        """The part of the new blocks that is grown by gradient."""
        if isinstance(self.growth, Mixed):
            return self.growth.gradient_frac
        return 1.0 if self.growth == "gradient" else 0.0

    @property
    def fraction(self) -> Fraction:
        """The update fraction by step."""
        return self.grow_frac if not isinstance(self.grow_frac, int | float) else Always(self.grow_frac)

    def is_update(self, step: int) -> bool:
        """Whether masks change after `step` optimizer steps."""
        begin, end = self.schedule.begin, self.schedule.end
        return step > 0 and begin <= step <= end and ((step - begin) % self.interval == 0 or step == end)


def _check_schedule(schedule: Schedule) -> None:
    """Raises `OptionsError` or `MaskError` where a schedule, be it of the user's own making, cannot be followed."""
    if isinstance(schedule, type) or not all(hasattr(schedule, part) for part in ("begin", "end", "target")):
        raise OptionsError(
            "expected a schedule such as Cubic(0.9, end=1000), or an object with begin, end and target(step), "
            f"got {schedule!r}"
        )
    check_steps(schedule.begin, schedule.end)
    if schedule.end < schedule.begin:
        raise OptionsError(
            f"expected a schedule that ends no sooner than it begins, got steps {schedule.begin} to {schedule.end}"
        )
    for step in (0, schedule.begin, schedule.end):
        check_sparsity(schedule.target(step))


def _check_choice(what: str, given: object, good: tuple[str, ...], more: str = "") -> None:
    if given not in good:
        raise OptionsError(f"expected a {what} among {', '.join(good)} {more}".rstrip() + f", got {given!r}")
