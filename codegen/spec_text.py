"""A spec as text and as plain values: read back, each value checked by the types of its class.

The text is its `repr`, which heads the source of a kernel; the values are those of `dataclasses.asdict`, as JSON keeps
them in bundles and plans.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from blast_compile.codegen.attention_spec import AttentionSpec
from blast_compile.codegen.spec import Epilogue, Spec

AnySpec = Spec | AttentionSpec
_SPECS = (Spec, AttentionSpec)
_KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (*_SPECS, Epilogue)}


def read_spec(values: Mapping[str, Any]) -> Spec:
    """From `dataclasses.asdict` of a product's spec, as JSON gives it back; a `ValueError` names what is wrong."""
    spec: Spec = _checked(values, Spec, "a spec")
    return spec


def parse(text: str) -> AnySpec:
    """The spec that `repr` wrote as `text`. Runs none of it; anything else, also of a later version, is refused."""
    try:
        spec = _value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, TypeError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"expected a spec, got {text[:200]!r}: {error}") from error
    if not isinstance(spec, _SPECS):
        raise ValueError(f"expected a spec, got {text[:200]!r}")
    return spec


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Tuple):
        return tuple(_value(each) for each in node.elts)
    if not isinstance(node, ast.Call):
        return ast.literal_eval(node)
    kind = _KINDS.get(node.func.id) if isinstance(node.func, ast.Name) else None
    if kind is None or node.args:
        raise TypeError("it calls something else")
    return _checked({str(each.arg): _value(each.value) for each in node.keywords}, kind, kind.__name__)


@cache
def _types_of(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in fields(kind)}


def _checked(value: Any, kind: Any, what: str) -> Any:
    """`value` as one of `kind`: a dataclass, a tuple, a `Literal`, a whole number in a range, a bool or a text."""
    if is_dataclass(kind):
        return _checked_fields(value, kind, what)
    origin, inner = get_origin(kind), get_args(kind)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        if len(value) == len(kinds):
            return tuple(_checked(each, one, what) for each, one in zip(value, kinds, strict=True))
    elif origin is Literal:
        if isinstance(value, str) and value in inner:
            return value
        raise ValueError(f"expected one of {', '.join(inner)} as {what}, got {value!r}")
    elif origin is Annotated:
        numbers: range = inner[1]
        if type(value) is int and value in numbers:
            return value
        raise ValueError(f"expected a whole number from {numbers[0]} to {numbers[-1]} as {what}, got {value!r}")
    elif type(value) is kind:
        return value
    raise ValueError(f"expected {kind} as {what}, got {value!r}")


def _checked_fields(value: Any, kind: Any, what: str) -> Any:
    if isinstance(value, kind):
        return value
    types = _types_of(kind)
    if not isinstance(value, Mapping) or set(value) != set(types):
        got = ", ".join(sorted(value)) if isinstance(value, Mapping) else repr(value)
        raise ValueError(f"expected the fields {', '.join(sorted(types))} of {what}, got {got}")
    return kind(**{name: _checked(value[name], type_, name) for name, type_ in types.items()})
