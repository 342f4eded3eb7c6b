"""Reasons to doubt the figures of a report, as warnings in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from blast_compile.report import quantities
from blast_compile.report.data import Measurement

_BEYOND = 1.1  # of the limit: less may be the noise of either
_SPREAD = 2.0  # of the deciles


def doubts(measurements: Sequence[Measurement], kept_bytes: Mapping[str, float], cache_bytes: int) -> Iterator[str]:
    """What speaks against them. kept_bytes: of all weights that a pass over an op goes through, by op."""
    noisy = [measured for measured in measurements if measured.p90_us > _SPREAD * measured.p10_us]
    if noisy:
        yield (
            f"{len(noisy)} of {len(measurements)} times vary more than twofold: something else uses this machine, and "
            "they are not to be trusted"
        )
    for op, num_bytes in kept_bytes.items():
        if num_bytes < cache_bytes:
            yield (
                f"the weights of all {op} take {quantities.size(num_bytes)} and stay in the caches of "
                f"{quantities.size(cache_bytes)}: such times flatter ours"
            )
    fast = max((measured.limit_frac for measured in measurements), default=0.0)
    if fast > _BEYOND:
        yield (
            f"an op takes {quantities.share(1 / fast)} of the time that this machine's limits allow: they were "
            "measured while it was busy (remove machine-*.json in the folder of plans), or caches helped"
        )
