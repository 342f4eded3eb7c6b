"""Options are validated, unknown ones named with the known ones."""

from __future__ import annotations

from typing import Any

import pytest

from blast_compile.backend.options import BackendOptions
from blast_compile.base.errors import OptionsError


def test_nothing_gives_the_defaults() -> None:
    assert BackendOptions.parse(None) == BackendOptions.parse({}) == BackendOptions("inductor", "dense")


def test_given_values_are_kept_and_the_mapping_is_not_changed() -> None:
    given = {"delegate": "aot_eager", "fallback": "error"}
    assert BackendOptions.parse(given) == BackendOptions("aot_eager", "error")
    assert given == {"delegate": "aot_eager", "fallback": "error"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delegat": "eager"}, r"among delegate, fallback, bundle.*, got 'delegat'; did you mean 'delegate'\?"),
        ({"mode": "max"}, r"expected options among delegate, fallback, .*, got 'mode'$"),
        ({3: "eager"}, r"expected options among delegate, fallback, .*, got 3$"),
        ({"delegate": "ts"}, r"expected option 'delegate' to be one of inductor, aot_eager, eager, got 'ts'"),
        ({"delegate": ["eager"]}, r"expected option 'delegate' to be one of .*, got \['eager'\]"),
        ({"fallback": None}, r"expected option 'fallback' to be one of dense, error, got None"),
    ],
)
def test_bad_options_are_named(options: dict[Any, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        BackendOptions.parse(options)


def test_direct_construction_is_validated_too() -> None:
    bad: Any = "dens"
    with pytest.raises(OptionsError, match="fallback"):
        BackendOptions(fallback=bad)
