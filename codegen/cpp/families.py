"""How C++ is made of a spec, a row a family: what is asked of one by whoever builds, stores, ships or tunes kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blast_compile.codegen.cpp.config import CpuConfig, default_config, why_impossible
from blast_compile.codegen.cpp.generate import generate, why_none
from blast_compile.codegen.spec import Spec


@dataclass(frozen=True)
class Family:
    """The kernels of one class of spec.

    spec, config: the classes. why_none: why a spec has no kernel at all, empty where it has one. default_config: of
    a spec. why_impossible: the same as why_none, at a config. generate: the text, of a spec and a config.
    """

    spec: type[Any]
    config: type[Any]
    why_none: Callable[[Any], str]
    default_config: Callable[[Any], Any]
    why_impossible: Callable[[Any, Any], str]
    generate: Callable[[Any, Any], str]


FAMILIES = {
    family.spec: family for family in (Family(Spec, CpuConfig, why_none, default_config, why_impossible, generate),)
}


def family_of(spec: object) -> Family:
    """That of a spec."""
    return FAMILIES[type(spec)]
