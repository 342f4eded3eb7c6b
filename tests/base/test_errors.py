"""Every error is also the built-in one a caller would expect."""

from __future__ import annotations

import pytest

from blast_compile.base import errors

BUILTINS = {
    "MaskError": ValueError,
    "LayerError": ValueError,
    "OptionsError": ValueError,
    "TargetError": ValueError,
    "DtypeError": TypeError,
    "GradientError": NotImplementedError,
    "ScratchError": MemoryError,
    "StoreError": OSError,
    "CheckpointError": ValueError,
    "TrainingError": RuntimeError,
    "BuildError": RuntimeError,
    "RewriteError": RuntimeError,
    "BundleError": ValueError,
    "RecordError": ValueError,
    "TuningError": RuntimeError,
}


def test_list_of_errors_is_complete() -> None:
    defined = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert defined == {"BlastError", *BUILTINS}


@pytest.mark.parametrize(("name", "builtin"), BUILTINS.items())
def test_error_is_caught_as_ours_and_as_the_builtin(name: str, builtin: type[Exception]) -> None:
    error = getattr(errors, name)
    for caught in (errors.BlastError, builtin):
        with pytest.raises(caught, match="expected a, got b"):
            raise error("expected a, got b")
