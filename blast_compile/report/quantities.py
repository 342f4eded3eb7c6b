"""Numbers for people: times, rates, bytes and ratios in three digits."""

from __future__ import annotations

from collections.abc import Sequence

_TIMES = ((1e6, "s"), (1e3, "ms"), (1.0, "µs"))
_BYTES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_RATES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"))


def time(us: float) -> str:
    """`1.23 ms`, from microseconds."""
    return _scaled(us, _TIMES, "µs")


def size(num_bytes: float) -> str:
    """`1.23 GiB`."""
    return _scaled(num_bytes, _BYTES, "B")


def rate(per_second: float, unit: str) -> str:
    """`1.23 TFLOP/s` for a unit of `FLOP/s`."""
    return _scaled(per_second, tuple((scale, prefix + unit) for scale, prefix in _RATES), unit)


def ratio(value: float) -> str:
    """`1.23x`."""
    return f"{_three_digits(value)}x"


def share(fraction: float) -> str:
    """`95 %`, with a tenth where it shows."""
    percent = 100 * fraction
    return f"{percent:.0f} %" if percent >= 99.95 or percent == round(percent) else f"{percent:.1f} %"


def _scaled(value: float, units: Sequence[tuple[float, str]], smallest: str) -> str:
    for scale, unit in units:
        if value >= scale:
            return f"{_three_digits(value / scale)} {unit}"
    return f"{_three_digits(value)} {smallest}"


def _three_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
