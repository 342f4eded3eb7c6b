"""Learning masks: prune-and-grow while a model trains, or one-shot pruning afterwards."""

from __future__ import annotations

from blast_compile.learning.ends import ends
from blast_compile.learning.growing.config import Mixed, PruneAndGrow
from blast_compile.learning.growing.schedules import (
    Constant,
    Cubic,
    Cyclic,
    Fraction,
    Linear,
    OneShot,
    PiecewiseCosine,
    Schedule,
    ThreePhases,
)
from blast_compile.learning.growing.sparsifier import Sparsifier
from blast_compile.learning.growing.update import LayerChange, UpdateRecord
from blast_compile.learning.pruning.prune import prune_
from blast_compile.learning.pruning.prune_report import PrunedLayer, PruneReport

__all__ = [
    "Constant",
    "Cubic",
    "Cyclic",
    "Fraction",
    "LayerChange",
    "Linear",
    "Mixed",
    "OneShot",
    "PiecewiseCosine",
    "PruneAndGrow",
    "PruneReport",
    "PrunedLayer",
    "Schedule",
    "Sparsifier",
    "ThreePhases",
    "UpdateRecord",
    "ends",
    "prune_",
]
