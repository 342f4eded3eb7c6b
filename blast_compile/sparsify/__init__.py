"""Learning masks: prune-and-grow while a model trains, or one-shot pruning afterwards."""

from __future__ import annotations

from blast_compile.sparsify.config import Mixed, PruneAndGrow
from blast_compile.sparsify.ends import ends
from blast_compile.sparsify.fractions import Fraction, PiecewiseCosine
from blast_compile.sparsify.prune import prune_
from blast_compile.sparsify.prune_report import PrunedLayer, PruneReport
from blast_compile.sparsify.schedules import Constant, Cubic, Cyclic, Linear, OneShot, Schedule, ThreePhases
from blast_compile.sparsify.sparsifier import Sparsifier
from blast_compile.sparsify.update import LayerChange, UpdateRecord

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
