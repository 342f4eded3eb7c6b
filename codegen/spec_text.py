"""A `Spec` as text: read back from its `repr`, which heads the source of a kernel, and told in a few words."""

from __future__ import annotations

import ast
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


_KINDS: dict[str, type[Spec | Epilogue]] = {kind.__name__: kind for kind in (Spec, Epilogue)}


def parse(text: str) -> Spec:
    """The spec that `repr` wrote as `text`. Runs none of it; anything else, such as a later version's, is a ValueError.

    Its values are not looked at.
    """
    try:
        spec = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, MemoryError, RecursionError) as error:
        raise ValueError(f"expected a Spec, got {text[:200]!r}: {error}") from error
    if not isinstance(spec, Spec):
        raise ValueError(f"expected a Spec, got {text[:200]!r}")
    return spec


def describe(spec: Spec) -> str:
    """A spec in a few words, its target left out."""
    first = spec.epilogues[0] if spec.epilogues else None
    flags = [name for name in ("bias", "residual") if any(getattr(each, name) for each in spec.epilogues)]
    dtypes = dict.fromkeys((spec.dtype, spec.weight_dtype))
    activation = [first.activation] if first and first.activation != "identity" else []
    return " ".join([spec.op, *activation, *flags, *dtypes, f"{spec.block[0]}x{spec.block[1]}", spec.layout])


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Tuple):
        return tuple(_value(each) for each in node.elts)
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    kind = _KINDS.get(node.func.id) if isinstance(node.func, ast.Name) else None
    if kind is None or node.args:
        raise TypeError("it calls something else")
    return kind(**{str(each.arg): _value(each.value) for each in node.keywords})  # type: ignore[arg-type]
