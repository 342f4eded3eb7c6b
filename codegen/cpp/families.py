"""How C++ is made of a spec, a row a family: what is asked of one by whoever builds, stores, ships or tunes kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blast_compile.codegen.attention_spec import AttentionSpec
from blast_compile.codegen.cpp import attention, config
from blast_compile.codegen.cpp.attention import AttentionConfig
from blast_compile.codegen.cpp.config import CpuConfig
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


def _product(spec: Spec, config: CpuConfig) -> str:
    from blast_compile.codegen.cpp.generate import generate  # imports sympy, which is slow

    return generate(spec, config)


FAMILIES = {
    family.spec: family
    for family in (
        Family(Spec, CpuConfig, config.why_none, config.default_config, config.why_impossible, _product),
        Family(
            AttentionSpec,
            AttentionConfig,
            attention.why_none,
            attention.default_config,
            attention.why_impossible,
            attention.generate,
        ),
    )
}


AnyCpuConfig = CpuConfig | AttentionConfig


def family_of(spec: object) -> Family:
    """That of a spec."""
    return FAMILIES[type(spec)]
