"""What became of each call of attention: which keys it leaves out, by which kernel it runs, or why torch's own does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from blast_compile.ops.attention.call import Attention
from blast_compile.ops.attention.cpu import kernel_of
from blast_compile.passes.survey import FoundAttention
from blast_compile.report import names


@dataclass(frozen=True)
class AttentionRow:
    """One call of attention.

    name: of the module that makes it, as in `model.named_modules()`. kind: "attention", ours, or "torch".
    shape: heads of queries, heads of keys, numbers of a head, in words. rule: which keys a query attends to. kernel:
    what runs it. reason: why torch's own does; empty where ours does.
    """

    name: str
    kind: str
    shape: str
    rule: str
    kernel: str
    reason: str


def rows_of(found: Iterable[FoundAttention]) -> Iterator[AttentionRow]:
    """A row a call, equal ones of one module once."""
    yield from dict.fromkeys(map(_row, found))


def lines_of(rows: Iterable[AttentionRow]) -> Iterator[str]:
    """The rows as text, equal ones of numbered modules in one line."""
    groups: dict[AttentionRow, list[str]] = {}
    for row in rows:
        groups.setdefault(replace(row, name=names.without_number(row.name)), []).append(row.name)
    for row, members in groups.items():
        name = names.joined(members) or "the model itself"
        if row.kind == "torch":
            yield f"{name}: torch's own attention runs, for {row.reason or 'it was not looked at'}"
        else:
            yield f"{name}: attention to {row.rule}, {row.shape}, {row.kernel}"


def _row(found: FoundAttention) -> AttentionRow:
    call = found.call
    if call is None:
        return AttentionRow(found.module, "torch", "", "", "", found.reason)
    _, H, Hk, _, _ = call.sizes
    kernel = kernel_of(call)
    shape = f"{H} heads of {call.q.shape[-1]}" + (f" in groups of {H // Hk}" if Hk != H else "")
    name = f"{kernel.name} ({kernel.reason})" if kernel.reason else kernel.name
    return AttentionRow(found.module, "attention", shape, rule_of(call), name, "")


def rule_of(call: Attention) -> str:
    """Which keys a query attends to, in words."""
    parts = [
        "listed blocks" if call.index is not None else "",
        "keys up to its own" if call.causal else "",
        f"the last {call.window}" if call.window >= 0 and call.causal else "",
        f"{call.window} to both sides" if call.window >= 0 and not call.causal else "",
        "its span" if call.spans is not None else "",
        "keys that are no padding" if call.padding is not None else "",
        "as many keys as there are" if call.kv_len is not None else "",
    ]
    return ", ".join(filter(None, parts)) or "all keys"
