"""Numbers as readers want them."""

from __future__ import annotations


def time_text(us: float) -> str:
    """A time in the unit that reads best."""
    return (
        f"{us:.1f} us"
        if us < 100
        else f"{us:.0f} us"
        if us < 1000
        else f"{us / 1000:.2f} ms"
        if us < 1e6
        else f"{us / 1e6:.2f} s"
    )


def ratio(value: float | None) -> str:
    """`3.42x`, or nothing."""
    return "" if value is None else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"
