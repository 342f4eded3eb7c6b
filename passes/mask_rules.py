"""Which keys a query attends to by its mask, as a rule that holds for all sizes; proven, or not taken."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from torch import Tensor
from torch.fx import Node

from blast_compile.base import compat
from blast_compile.passes.mask_terms import B, H, Index, K, NotReadError, Q, Terms, truth
from blast_compile.passes.vocabulary import fake


@dataclass(frozen=True)
class MaskRule:
    """A query `q` of a call attends to the keys `k` for which all of this holds.

    upper: `k <= q + upper`; lower: `k >= q + lower`; as formulas of sizes, and of `starts`, tensors of no dimension by
    the name that they have there. padding: nodes `[B or 1, Lk]` that are not 0 where a key is none. documents: nodes
    `[B or 1, L]`, numbers that never fall, the same for q and k. chunk: `k // chunk == q // chunk`. seen: all nodes
    that the mask is made of.
    """

    upper: sympy.Expr | None = None
    lower: sympy.Expr | None = None
    starts: tuple[Node, ...] = ()
    padding: tuple[Node, ...] = ()
    documents: tuple[Node, ...] = ()
    chunk: int | None = None
    seen: tuple[Node, ...] = ()


def read_mask(mask: Node, *, has_one_query: bool) -> MaskRule | str:
    """The rule of a bool mask of up to four dimensions, or why it is none, in words."""
    shown = fake(mask)
    if not isinstance(shown, Tensor) or not 0 < shown.dim() <= 4 or shown.dtype != torch.bool:
        return "its mask is no bool tensor"
    index: Index = tuple(
        sympy.Integer(0) if compat.known_equal(size, 1) else at
        for size, at in zip(shown.shape, (B, H, Q, K)[-shown.dim() :], strict=True)
    )
    terms = Terms()
    try:
        return _rule_of(truth(terms.at(mask, index)), terms, has_one_query)
    except NotReadError as error:
        return str(error)


def _rule_of(condition: Any, terms: Terms, has_one_query: bool) -> MaskRule:
    if condition is sympy.false:
        raise NotReadError("its mask lets nothing through")
    parts = condition.args if isinstance(condition, sympy.And) else () if condition is sympy.true else (condition,)
    rule = MaskRule()
    documents = [part for part in parts if _document(part, terms) is not None]
    for part in documents:
        rule = replace(rule, documents=(*rule.documents, terms.nodes[_document(part, terms) or ""]))
    for part in parts:
        if part not in documents:
            rule = _with(rule, _inside_documents(part, documents, terms), terms, has_one_query)
    names = {str(symbol) for bound in (rule.upper, rule.lower) if bound is not None for symbol in bound.free_symbols}
    starts = tuple(node for name, node in terms.nodes.items() if name in names)
    return replace(rule, starts=starts, seen=tuple(terms.seen))


def _with(rule: MaskRule, part: Any, terms: Terms, has_one_query: bool) -> MaskRule:
    """A rule with one more condition."""
    if (node := _padding(part, terms)) is not None:
        return replace(rule, padding=(*rule.padding, node))
    if (chunk := _chunk(part)) is not None and rule.chunk in (None, chunk):
        return replace(rule, chunk=chunk)
    bound = _bound(part, has_one_query)
    if bound is not None:
        is_upper, value = bound
        if is_upper and (rule.upper is None or rule.upper == value):
            return replace(rule, upper=value)
        if not is_upper and (rule.lower is None or rule.lower == value):
            return replace(rule, lower=value)
    raise NotReadError(f"no rule says what its mask asks: {part}")


def _bound(part: Any, has_one_query: bool) -> tuple[bool, sympy.Expr] | None:
    """`k <= q + c` as (True, c), `k >= q + c` as (False, c); None for anything else. The only query stands at 0."""
    if not isinstance(part, sympy.Le | sympy.Lt | sympy.Ge | sympy.Gt):
        return None
    difference = part.lhs - part.rhs if isinstance(part, sympy.Le | sympy.Lt) else part.rhs - part.lhs  # up to 0
    if isinstance(part, sympy.Lt | sympy.Gt):
        difference += 1  # of whole numbers
    difference = sympy.expand(difference)
    sign = difference.coeff(K)
    offset = sympy.expand(difference - sign * K + (0 if has_one_query else sign * Q))
    is_known = not {B, H, Q, K} & offset.free_symbols and not offset.atoms(AppliedUndef)
    if sign not in (1, -1) or not is_known:
        return None
    return (True, -offset) if sign == 1 else (False, offset)


def _padding(part: Any, terms: Terms) -> Node | None:
    """The node of `padding(b, k) != 0`."""
    if not isinstance(part, sympy.Ne) or part.rhs != 0 or not isinstance(part.lhs, AppliedUndef):
        return None
    name, at = part.lhs.func.__name__, part.lhs.args
    return terms.nodes[name] if len(at) == 2 and at[0] in (B, 0) and at[1] == K and name not in terms.restarts else None


def _document(part: Any, terms: Terms) -> str | None:
    """The name of what counts documents in `documents(b, q) == documents(b, k)`."""
    if not isinstance(part, sympy.Eq) or not all(isinstance(side, AppliedUndef) for side in part.args):
        return None
    left, right = part.args
    name, ends = left.func.__name__, {left.args[-1], right.args[-1]}
    same = right.func.__name__ == name and left.args[:-1] == right.args[:-1]
    return name if same and ends == {Q, K} and name in terms.restarts else None


def _inside_documents(part: Any, documents: list[Any], terms: Terms) -> Any:
    """Positions of one document rise by one from token to token, so they compare as tokens do."""
    if not documents or not isinstance(part, sympy.Le | sympy.Lt | sympy.Ge | sympy.Gt):
        return part
    for document in documents:
        name = _document(document, terms)
        assert name is not None
        positions, batch = terms.restarts[name], document.args[0].args[0]
        if isinstance(positions, AppliedUndef):
            function = positions.func
            changed = part.subs({function(batch, Q): Q, function(batch, K): K})
            if changed != part:
                return changed
    return part


def _chunk(part: Any) -> int | None:
    """The size of chunks in `floor(k / chunk) == floor(q / chunk)`."""
    if not isinstance(part, sympy.Eq):
        return None
    size = sympy.Wild("size", properties=[lambda value: value.is_Integer and value > 0])
    left, right = sympy.floor(K / size), sympy.floor(Q / size)
    for pair in (part.args, part.args[::-1]):
        first, second = pair[0].match(left), pair[1].match(right)
        if first and second and first[size] == second[size]:
            return int(first[size])
    return None
