"""The table of models tells what is true now."""

from __future__ import annotations

import pytest
import torch

from tests import zoo


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of a hundred models' own code
def test_the_table_of_models_is_true() -> None:
    text = zoo.DOCUMENT.read_text()
    assert zoo.written(text, "".join(zoo.table())) == text
    torch._dynamo.reset()


def test_the_table_of_models_lists_those_that_are_tried() -> None:
    lines = zoo.DOCUMENT.read_text().partition(zoo.BEGIN)[2].partition(zoo.END)[0].splitlines()
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines[2:]] == zoo.MODELS
