"""What BLaST claims of memory, speed and GPUs (arXiv 2507.03117, abstracts of v1, July 2025, and v2, October 2025).

Its code is not public, and the abstracts do not say which dtype, block and batch the figures hold for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A figure of the paper. model: one of `shapes.LLAMAS`, or empty where none is named. devices: if they are said."""

    what: str
    gain: float
    model: str
    version: str
    devices: int | None = None


CLAIMS = (
    Claim("inference memory smaller", 3.12, "", "v1"),
    Claim("inference memory smaller", 4.45, "", "v2"),
    Claim("fewer GPUs", 2.9, "llama-405b", "v2"),
    Claim("inference faster", 1.6, "llama-1b", "v1", 1),
    Claim("inference faster", 2.2, "", "v2", 16),
)
"""All at up to 95 % of the blocks of MLPs."""


def of_model(name: str, what: str) -> Claim | None:
    """The claim for one model."""
    return next((claim for claim in CLAIMS if (claim.model, claim.what) == (name, what)), None)


def of_no_model(what: str) -> list[Claim]:
    """The claims that do not say for which model they hold."""
    return [claim for claim in CLAIMS if not claim.model and claim.what == what]
