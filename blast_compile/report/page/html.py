"""A report as one HTML file that holds all it needs: styles, script, plots as SVG, masks as images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import jinja2
from markupsafe import Markup
from torch import Tensor

from blast_compile.report import quantities
from blast_compile.report.data import Report
from blast_compile.report.page import figures, heatmaps, plots
from blast_compile.report.tiles import tiles

_MAX_MASKS = 120  # of which the page holds images: some hundred KiB


@dataclass(frozen=True)
class _Canvas:
    width: float = plots.WIDTH
    height: float = plots.HEIGHT


def html(report: Report, masks: Mapping[str, Tensor]) -> str:
    """The page. masks: bool `[R, C]` by layer, as `pictures.masks_of` gives them."""
    images = [
        (name, f"{quantities.share(1 - float(kept.float().mean()))} zero", heatmaps.data_uri(kept))
        for name, kept in list(masks.items())[:_MAX_MASKS]
    ]
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            report=report,
            tiles=tiles(report),
            roofline=figures.roofline(report),
            prediction=figures.prediction(report),
            canvas=_Canvas(),
            masks=images,
            num_more_masks=max(0, len(masks) - _MAX_MASKS),
        )
    )


def _breakable(name: str) -> Markup:
    """A dotted name that may go on in another line behind each dot."""
    return Markup(".<wbr>").join(name.split("."))


def _percent(part: float, whole: float) -> str:
    return f"{100 * min(part / whole, 1):.2f}%"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("blast_compile.report.page", ""),
        undefined=jinja2.StrictUndefined,
        autoescape=lambda name: name is None or not name.endswith((".css", ".js")),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "time": quantities.time,
        "size": quantities.size,
        "share": quantities.share,
        "ratio": quantities.ratio,
        "percent": _percent,
        "breakable": _breakable,
    }
    return environment
