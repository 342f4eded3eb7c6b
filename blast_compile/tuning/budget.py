"""How much a search may still do: seconds and trials."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from blast_compile.base.errors import OptionsError


class BudgetSpentError(Exception):
    """The budget is spent: a search ends here, with what it has."""


@dataclass
class Budget:
    """seconds: of wall time from the start on. trials: configurations that may be measured."""

    seconds: float = 60.0
    trials: int = 10**9
    start: float = field(default_factory=time.monotonic)
    used: int = 0

    def __post_init__(self) -> None:
        """Rejects budgets of nothing with an `OptionsError`."""
        if not self.seconds > 0 or self.trials < 1:
            raise OptionsError(
                f"expected a budget of more than 0 seconds and 1 trial, got {self.seconds} and {self.trials}"
            )

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.seconds - (time.monotonic() - self.start)

    def take(self, wanted: int) -> int:
        """How many of the `wanted` trials may still be made, at least one; raises `BudgetSpentError` when none may."""
        granted = min(wanted, self.trials - self.used)
        if granted < 1 or self.left_s <= 0:
            raise BudgetSpentError
        self.used += granted
        return granted
