"""Values of a JSON text, checked one by one: what is not as expected is a `ValueError` that says so."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")


def typed(value: Any, kind: type[T], what: str) -> T:
    """`value`, if it is of this kind; true and false are no numbers."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"expected {kind.__name__} as {what}, got {type(value).__name__}")
    return value


def get(entry: Any, key: str, kind: type[T]) -> T:
    """A field of an object."""
    return typed(typed(entry, dict, "an entry").get(key), kind, key)


def text(entry: Any, key: str) -> str:
    """A text field."""
    return get(entry, key, str)


def number(entry: Any, key: str) -> int:
    """A field that is a whole number."""
    return get(entry, key, int)


def texts(entry: dict[str, Any]) -> dict[str, str]:
    """An object whose values are all texts."""
    return {name: typed(value, str, name) for name, value in entry.items()}
