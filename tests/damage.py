"""Ways to damage a file, for tests of those that read it."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from([0, -1, 10**400, float("inf"), float("nan"), 2.5])
    | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def flipped(draw: st.DrawFn, content: bytes) -> bytes:
    """Some bytes of a file changed, or its end cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
    return bytes(changed[: draw(st.integers(0, len(changed)))] if draw(st.booleans()) else changed)


@st.composite
def edited(draw: st.DrawFn, tree: Any) -> Any:
    """A tree of JSON values with another value somewhere, or one value less or more."""
    tree = copy.deepcopy(tree)
    place, key = tree, None
    parent: Any = None
    while isinstance(place, dict | list) and place and (parent is None or draw(st.integers(0, 3))):
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        parent, key = place, draw(st.sampled_from(keys))
        place = place[key]
    if parent is None:
        return draw(JSON)
    if draw(st.integers(0, 3)):
        parent[key] = draw(JSON)
    else:
        del parent[key]
    return tree
