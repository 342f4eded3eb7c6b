"""Options as text, and what they mean."""

from __future__ import annotations

import pytest
import typer

from benchmarks import commands, settings
from benchmarks.ranges import RANGES


def test_shapes_by_name_and_by_size() -> None:
    assert settings.shapes("llama-1b,128x64") == ((8192, 2048), (128, 64))
    assert settings.shapes("llama-8b,gpt2-xl,vit-h") == ((14336, 4096), (6400, 1600), (5120, 1280))


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("quick", [False, True])
def test_every_benchmark_has_ranges_that_parse(name: str, quick: bool) -> None:
    chosen = commands._settings(name, None, None, None, 32, "vit-h,64x64", 2, None, quick, None)
    assert chosen.path.name == f"{name}.jsonl"
    assert chosen.rounds <= RANGES[name][0].rounds
    with pytest.raises(typer.BadParameter, match="expected one shape for this benchmark, got 2"):
        _ = chosen.shape
