"""Times the sparse ops of a model against dense ones, in turns, after their results were compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blast_compile.base.errors import LayerError
from blast_compile.kernels.launcher import launcher
from blast_compile.report.sites import DenseTwin, Site
from blast_compile.tuning.timing import Timing, interleaved

DENSE = "eager"
_DENSE_BYTES = 2**30  # of dense twins at a time: more than any cache, and little beside a model
_TOLERANCE = 0.05  # 16 bits differ by a hundredth of the largest value after a long sum; a wrong kernel by all of it


@dataclass(frozen=True)
class Timed:
    """Ours and dense, of one site; error: largest difference over the largest value."""

    tokens: int
    ours: Timing
    dense: Timing
    error: float


def time_sites(sites: Sequence[Site], tokens: Sequence[int], *, rounds: int, seconds: float) -> Iterator[Timed]:
    """One result a number of tokens, of alike sites; a pass goes through them all, and past the caches.

    Raises `LayerError` where results differ by more than rounding does.
    """
    launcher.load()  # so that ours is timed as compiled models call it
    first, chosen = sites[0], timed_sites(sites)
    with torch.inference_mode(False), torch.no_grad():
        twins = [DenseTwin(site) for site in chosen]
        for M in tokens:
            x, residual = first.inputs(M)
            error = max(_error(site, twin, x, residual) for site, twin in zip(chosen, twins, strict=True))
            passes: dict[str, Callable[[], object]] = {
                "ours": lambda x=x, residual=residual: [site.run(x, residual) for site in chosen],  # type: ignore[misc]
                DENSE: lambda x=x, residual=residual: [twin(x, residual) for twin in twins],  # type: ignore[misc]
            }
            timings = interleaved(passes, rounds=rounds, seconds=seconds)
            yield Timed(M, _share(timings["ours"], len(chosen)), _share(timings[DENSE], len(chosen)), error)


def timed_sites(sites: Sequence[Site]) -> Sequence[Site]:
    """As many of alike sites as are timed together: dense twins of more would take too much memory."""
    first = sites[0]
    dense_bytes = sum(N * K for N, K in (layer.shape for layer in first.layers)) * first.dtype.itemsize
    return sites[: max(1, _DENSE_BYTES // dense_bytes)]


def _error(site: Site, twin: DenseTwin, x: Tensor, residual: Tensor | None) -> float:
    expected, got = twin(x, residual).float(), site.run(x, residual).float()
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    error = float((got - expected).abs().max() / largest)
    if not error <= _TOLERANCE:
        raise LayerError(
            f"expected {site.names[0]} to compute what its dense twin does, got a difference of {error:.1%} of the "
            "largest value; run `blast-compile cache verify`, and report it if that finds nothing"
        )
    return error


def _share(timing: Timing, num_sites: int) -> Timing:
    return replace(
        timing,
        median_us=timing.median_us / num_sites,
        p10_us=timing.p10_us / num_sites,
        p90_us=timing.p90_us / num_sites,
    )
