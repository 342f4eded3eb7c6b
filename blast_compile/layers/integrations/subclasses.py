"""Wraps methods of all classes that derive from one of another library: of those that there are, and those to come."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any

Method = Callable[..., Any]


def follow_(base: Any, guards: Mapping[str, Callable[[Method], Method]]) -> None:
    """Puts the guard of each name around the method that a class below `base` defines under it."""

    def follow(cls: Any, /, **kwargs: Any) -> None:
        super(base, cls).__init_subclass__(**kwargs)
        wrap_(cls, guards)

    base.__init_subclass__ = classmethod(follow)
    for kind in _below(base):
        wrap_(kind, guards)


def wrap_(kind: type, guards: Mapping[str, Callable[[Method], Method]]) -> None:
    """The same for one class. A method is wrapped once."""
    for name, guard in guards.items():
        method = vars(kind).get(name)
        if isinstance(method, FunctionType) and not hasattr(method, "guards_sparse_layers"):
            guarded: Any = guard(method)
            guarded.guards_sparse_layers = True
            setattr(kind, name, guarded)


def _below(kind: Any) -> Iterator[type]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _below(subclass)
