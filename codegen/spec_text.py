"""A `Spec` as text: read back from its `repr`, which heads the source of a kernel, and told in a few words."""

from __future__ import annotations

import ast

from blast_compile.codegen.spec import Epilogue, Spec

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
