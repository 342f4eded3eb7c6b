"""Forecasts as rows and notes for a terminal, BLaST's claims beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

from blast_compile.report import quantities
from blast_compile.report.forecast import claims
from blast_compile.report.forecast.estimate import USABLE, Estimate, Forecast, Setting

Justify = Literal["left", "right"]


def columns() -> list[tuple[str, Justify]]:
    """Names, and to which side their cells go."""
    names = (
        "weights",
        "cache",
        "devices needed",
        "decode, a token",
        "prefill",
        "smaller",
        "fewer",
        "faster",
        "BLaST claims",
    )
    return [("model", "left"), ("", "left"), *((name, "right") for name in names[:-1]), (names[-1], "left")]


def rows(found: Sequence[Forecast]) -> Iterator[tuple[str, ...]]:
    """Two of each model: dense, and sparse with what it gains."""
    for each in found:
        name = f"{each.shape.name}, {_count(each.shape.num_weights)}"
        yield (name, "dense", *_cells(each.dense, each.setting), "", "", "", "")
        needed = (each.dense.devices_needed, each.sparse.devices_needed)
        fewer = quantities.ratio(needed[0] / needed[1]) if needed[1] else ""
        faster = each.prefill_gain if each.decode_gain is None else each.decode_gain
        gains = (quantities.ratio(each.memory_gain), fewer, quantities.ratio(faster))
        yield ("", "sparse", *_cells(each.sparse, each.setting), *gains, _claims_of(each.shape.name))


def notes(found: Sequence[Forecast], setting: Setting) -> Iterator[str]:
    """What the figures leave out, and the claims that name no model."""
    basis = f"what bandwidth and arithmetic allow ({setting.device.source}): a bound"
    if setting.device.kind.startswith("cpu:"):
        basis = "what the cost model expects of our kernels on this machine, at full density for dense layers"
    yield (
        f"Times are {basis}. Devices share them evenly; no communication, no launches. Faster: decode. A device's "
        f"memory counts to {USABLE:.0%}, for weights and cache."
    )
    for each in found:
        if not each.shape.decodes:
            yield f"{each.shape.name} makes no tokens: there is no decode and no cache, and faster means its prefill."
    for each in found:
        if 0 < setting.devices < each.dense.devices_needed:
            fits = "sparse it does" if each.sparse.devices_needed <= setting.devices else "nor sparse"
            yield f"{each.shape.name} does not fit {setting.devices} x {setting.device.name} dense; {fits}."
    smaller = " and ".join(
        f"{claim.gain}x ({claim.version})" for claim in claims.of_no_model("inference memory smaller")
    )
    faster = ", ".join(f"{c.gain}x on {c.devices} GPUs ({c.version})" for c in claims.of_no_model("inference faster"))
    yield f"BLaST (arXiv 2507.03117) also claims, naming no model here: memory {smaller} smaller; inference {faster}."
    most = max(found, key=lambda each: each.memory_gain)
    yield (
        f"With {setting.sparsity:.0%} of MLP blocks gone, weights shrink by {most.memory_gain:.2f}x at most here "
        f"({most.shape.name}, {most.shape.sparse_share:.0%} of whose weights can be sparse)."
    )


def _cells(estimate: Estimate, setting: Setting) -> tuple[str, ...]:
    return (
        quantities.size(estimate.weight_bytes),
        "none" if estimate.decode_s is None else quantities.size(estimate.cache_bytes),
        str(estimate.devices_needed or "unknown"),
        "none" if estimate.decode_s is None else _decode(estimate.decode_s / setting.batch),
        quantities.time(1e6 * estimate.prefill_s),
    )


def _decode(seconds: float) -> str:
    return f"{quantities.time(1e6 * seconds)} ({_rate(1 / seconds)}/s)"


def _count(weights: int) -> str:
    return f"{weights / 1e9:.3g}B" if weights >= 1e9 else f"{weights / 1e6:.3g}M"


def _claims_of(model: str) -> str:
    found = [(what, claims.of_model(model, what)) for what in ("inference faster", "fewer GPUs")]
    return ", ".join(f"{claim.gain}x {what} ({claim.version})" for what, claim in found if claim is not None)


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 10 else f"{per_s:.2g}"
