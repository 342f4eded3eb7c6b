"""The exceptions of blast_compile.

Each is also the built-in error a caller would expect, so `except ValueError` works without importing ours.
Every message says three things: what was expected, what came, and what to change.
"""

from __future__ import annotations


class BlastError(Exception):
    """Anything that blast_compile raises on purpose."""


class MaskError(BlastError, ValueError):
    """A mask or block that does not fit its weight, or a sparsity outside [0, 1]."""


class LayerError(BlastError, ValueError):
    """A model or layer that cannot be made sparse, packed or unpacked as asked."""


class OptionsError(BlastError, ValueError):
    """An unknown option, or a setting whose value is not among the good ones."""


class TargetError(BlastError, ValueError):
    """An instruction set or device that is unknown here or cannot run what was asked."""


class DtypeError(BlastError, TypeError):
    """A tensor of a dtype that the operators do not take."""


class GradientError(BlastError, NotImplementedError):
    """A differentiation that the operators have no formula for."""


class ScratchError(BlastError, MemoryError):
    """No memory for what a kernel keeps while it runs."""


class StoreError(BlastError, OSError):
    """A store folder that cannot be trusted or used."""


class CheckpointError(BlastError, ValueError):
    """A saved model that is damaged, foreign, newer than this version, or of another architecture."""


class BundleError(BlastError, ValueError):
    """A bundle that is damaged, edited, made by another version, or that another user could have written."""


class TrainingError(BlastError, RuntimeError):
    """Calls of a training loop in an order that a mask update cannot follow."""


class BuildError(BlastError, RuntimeError):
    """Generated source that did not compile or load."""


class RewriteError(BlastError, RuntimeError):
    """A graph rewrite that failed; raised only under `fallback="error"`."""


class TuningError(BlastError, RuntimeError):
    """A configuration whose results are wrong, or a search that was asked for what it cannot do."""


class RecordError(BlastError, ValueError):
    """A record or plan that cannot be read, or that another version or machine wrote."""
