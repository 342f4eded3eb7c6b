"""Reads the mask of every call of torch's attention, and notes which keys its queries attend to; rewrites nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Graph, Node

from blast_compile.base import compat
from blast_compile.passes.attention_calls import RULE, attention_calls, read
from blast_compile.passes.mask_rules import MaskRule, read_mask
from blast_compile.passes.vocabulary import fake


@dataclass(frozen=True)
class ReadMasks:
    """Puts a `MaskRule` into the notes of each call with a mask, or the reason why its mask is none.

    A mask that many layers share is read once.
    """

    name: str = "read-masks"

    def run(self, graph: Graph) -> bool:
        """Changes nothing but notes."""
        known: dict[tuple[Node, bool], MaskRule | str] = {}
        for node in attention_calls(graph):
            call = read(node)
            if call is None or call.mask is None:
                continue
            has_one_query = compat.known_equal(fake(call.q).shape[2], 1)
            key = (call.mask, has_one_query)
            if key not in known:
                known[key] = read_mask(call.mask, has_one_query=has_one_query)
            node.meta[RULE] = known[key]
        return False
