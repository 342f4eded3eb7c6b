"""A `Spec` from its JSON, checked field by field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from blast_compile.codegen.spec import Activation, Dtype, Epilogue, Layout, Op, Spec

_FLAGS = ("bias", "gate", "gate_bias", "residual")


def read_spec(fields: Mapping[str, Any]) -> Spec:
    """From `dataclasses.asdict` of a spec, as JSON gives it back; a `ValueError` that names what is wrong."""
    expected = set(Spec.__dataclass_fields__)
    if set(fields) != expected:
        raise ValueError(
            f"expected the fields {', '.join(sorted(expected))} of a spec, got {', '.join(sorted(fields))}"
        )
    block, target, epilogues = fields["block"], fields["target"], fields["epilogues"]
    if not isinstance(block, list) or len(block) != 2 or not all(_is_edge(edge) for edge in block):
        raise ValueError(f"expected two edges of a block from 1 to 256, got {block!r}")
    if not isinstance(target, str) or not isinstance(epilogues, list):
        raise ValueError(f"expected a target and a list of epilogues, got {target!r} and {epilogues!r}")
    return Spec(
        op=_among(fields["op"], get_args(Op)),
        dtype=_among(fields["dtype"], get_args(Dtype)),
        weight_dtype=_among(fields["weight_dtype"], get_args(Dtype)),
        block=(block[0], block[1]),
        epilogues=tuple(_epilogue(epilogue) for epilogue in epilogues),
        layout=_among(fields["layout"], get_args(Layout)),
        target=target,
    )


def _epilogue(fields: Any) -> Epilogue:
    expected = ("activation", *_FLAGS)
    if not isinstance(fields, dict) or set(fields) != set(expected):
        raise ValueError(f"expected the fields {', '.join(expected)} of an epilogue, got {fields!r}")
    if not all(isinstance(fields[flag], bool) for flag in _FLAGS):
        raise ValueError(f"expected true or false as {', '.join(_FLAGS)}, got {fields!r}")
    flags = {flag: fields[flag] for flag in _FLAGS}
    return Epilogue(_among(fields["activation"], get_args(Activation)), **flags)


def _among(value: Any, good: tuple[Any, ...]) -> Any:
    if not isinstance(value, str) or value not in good:
        raise ValueError(f"expected one of {', '.join(good)}, got {value!r}")
    return value


def _is_edge(edge: Any) -> bool:
    return isinstance(edge, int) and not isinstance(edge, bool) and 1 <= edge <= 256
