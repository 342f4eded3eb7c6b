"""Rewrites of the Dynamo graph: one rewrite a file, their order in one tuple."""

from __future__ import annotations

from torch.fx import GraphModule

from blast_compile.passes.attention_calls import attention_calls
from blast_compile.passes.drop_identities import DropIdentities
from blast_compile.passes.fuse import FuseLayers
from blast_compile.passes.lift_views import LiftViews
from blast_compile.passes.name_activations import NameActivations
from blast_compile.passes.outplace import Outplace
from blast_compile.passes.pick_overloads import PickOverloads
from blast_compile.passes.pipeline import Pass
from blast_compile.passes.pipeline import run as run_passes
from blast_compile.passes.read_masks import ReadMasks
from blast_compile.passes.split_halves import SplitHalves
from blast_compile.passes.vocabulary import nested_graphs, sparse_kind
from blast_compile.passes.write_attention import WriteAttention

__all__ = ["PIPELINE", "has_attention", "has_sparse_layers", "passes_for", "rewrite"]

PIPELINE: tuple[Pass, ...] = (
    DropIdentities(),
    Outplace(),
    LiftViews(),  # views between a linear and its activation
    NameActivations(),
    LiftViews(),  # views behind an activation that has a name only now
    DropIdentities(),  # views that became idle when they met at the input
    SplitHalves(),
    FuseLayers(),
    ReadMasks(),  # behind all that may remove a node which a rule names
    WriteAttention(),
    PickOverloads(),
)
"""Normalise, match, judge, rewrite. Any tuple of passes may be given to `rewrite`, for bisection."""


def passes_for(*, attention: bool) -> tuple[Pass, ...]:
    """All passes, without the one that writes attention unless that is wanted."""
    return tuple(step for step in PIPELINE if attention or not isinstance(step, ReadMasks | WriteAttention))


def rewrite(gm: GraphModule, passes: tuple[Pass, ...] = PIPELINE) -> bool:
    """Rewrites a Dynamo graph in place with fused sparse ops; returns whether it changed. Raises `RewriteError`."""
    return run_passes(gm, passes)


def has_sparse_layers(gm: GraphModule) -> bool:
    """Whether a graph, or one inside it, calls a sparse op."""
    return any(sparse_kind(node) for node in gm.graph.nodes) or any(map(has_sparse_layers, nested_graphs(gm).values()))


def has_attention(gm: GraphModule) -> bool:
    """Whether a graph, or one inside it, calls torch's attention."""
    return bool(attention_calls(gm.graph)) or any(map(has_attention, nested_graphs(gm).values()))
