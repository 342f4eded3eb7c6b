"""A config as text: its `repr`, which can be pasted into `options={"config": ...}` and stands in records.

Fields that have a default may be left out.
"""

from __future__ import annotations

import ast
from dataclasses import MISSING, fields
from functools import lru_cache
from typing import Any

from blast_compile.base.errors import RecordError
from blast_compile.codegen.cpp.config import CpuConfig
from blast_compile.codegen.cpp.families import FAMILIES
from blast_compile.codegen.triton.config import TritonConfig

Config = CpuConfig | TritonConfig
_EXAMPLE = "CpuConfig(token_tile=12, vectors=2, panel_bytes=1048576)"
Kind = type[CpuConfig] | type[TritonConfig]
_KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (*(each.config for each in FAMILIES.values()), TritonConfig)}


@lru_cache(1024)  # a plan reads one config for every bucket of tokens
def parse(text: str) -> Config:
    """The config that `repr` wrote as `text`. Runs none of it; anything else is a `RecordError`.

    Its values may still be ones that no kernel takes: `space.reason_against` tells.
    """
    kind, values = read(text)
    if missing := [field.name for field in fields(kind) if field.default is MISSING and field.name not in values]:
        raise _refused(text, f"it needs {' and '.join(missing)} too")
    return kind(**values)


def read(text: str) -> tuple[Kind, dict[str, Any]]:
    """The kind of config that a text names, and the fields that it gives, any of them; raises as `parse` does."""
    try:
        return _read(text)
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise _refused(text, error) from error


def difference(text: str, base: Config) -> str:
    """The fields in which a config, as its `repr`, differs from another one: `row_group 2, span 256`."""
    try:
        config = parse(text)
    except RecordError:
        return text
    if type(config) is not type(base):
        return text
    changed = [field.name for field in fields(base) if getattr(config, field.name) != getattr(base, field.name)]
    return ", ".join(f"{name} {getattr(config, name)}" for name in changed) or "the default"


def _refused(text: str, why: object) -> RecordError:
    return RecordError(f"expected a config such as {_EXAMPLE}, got {text[:200]!r}: {why}")


def _read(text: str) -> tuple[Kind, dict[str, Any]]:
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.args:
        raise ValueError("it is no call with keywords")
    kind = _KINDS.get(call.func.id)
    if kind is None:
        raise ValueError(f"it is none of {', '.join(_KINDS)}")
    values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    types = {field.name: field.type for field in fields(kind)}
    for name, value in values.items():
        if name not in types:
            raise ValueError(f"no field {name!r} among {', '.join(types)}")
        if type(value).__name__ not in str(types[name]) and not str(types[name]).startswith(("Literal", "Share")):
            raise ValueError(f"{name} is {value!r}, expected {types[name]}")
    return kind, values
