"""What the page says, read as text."""

from __future__ import annotations

import re
import struct
import zlib
from base64 import b64decode
from dataclasses import replace

import torch
from torch import Tensor

from blast_compile.report.data import Report
from blast_compile.report.page import heatmaps
from blast_compile.report.page.html import html


def test_names_are_escaped(report: Report, masks: dict[str, Tensor]) -> None:
    page = html(report, masks)
    assert "a &lt;small&gt; model" in page
    assert "<small> model" not in page


def test_the_page_refers_to_nothing_outside(report: Report, masks: dict[str, Tensor]) -> None:
    page = html(report, masks)
    assert not re.findall(r"(?:https?:)?//[a-z]", page.replace("// A click", ""))
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}


def test_the_page_says_what_was_lost_and_why(report: Report, masks: dict[str, Tensor]) -> None:
    page = html(report, masks)
    for text in (
        "64 x 2 sums do not fit in 32 registers",
        "a hook stands between gate and up",
        "its weight is tied to another module",
        "the model ran as 2 graphs",
        "1.25x",
    ):
        assert text in page


def test_parts_without_content_are_left_out(report: Report) -> None:
    bare = replace(report, measurements=(), trials=(), totals=(), dense=(), warnings=())
    page = html(bare, {})
    assert not re.search(r'id="(roofline|prediction|trials|dense|masks|ops)"', page)
    assert 'id="layers"' in page


def test_what_was_not_timed_says_why(report: Report) -> None:
    ops = tuple(replace(op, untimed="no kernels for float64") for op in report.ops)
    page = html(replace(report, ops=ops, measurements=(), trials=(), totals=()), {})
    assert page.count("not timed: no kernels for float64") == len(ops)
    assert "Nothing was timed" in page
    assert "nothing was tuned on this machine yet" not in page
    assert "nothing was tuned on this machine yet" in html(replace(report, trials=()), {})


def test_reasons_take_a_column_only_where_there_are_some(report: Report) -> None:
    fused = tuple(replace(layer, reason="") for layer in report.sparse)
    assert "why it is in no fused MLP" in html(report, {})
    assert "why it is in no fused MLP" not in html(replace(report, sparse=fused), {})


def pixels(uri: str) -> list[list[int]]:
    """Opacities of an image of grey and alpha without filters."""
    data = b64decode(uri.partition(",")[2])
    width, height = struct.unpack(">II", data[16:24])
    size = struct.unpack(">I", data[33:37])[0]
    rows = zlib.decompress(data[41 : 41 + size])
    stride = 1 + 2 * width
    return [list(rows[row * stride + 2 : (row + 1) * stride : 2]) for row in range(height)]


def test_a_heatmap_has_a_pixel_a_block() -> None:
    kept = torch.tensor([[True, False, True], [False, False, True]])
    assert pixels(heatmaps.data_uri(kept)) == [[255, 0, 255], [0, 0, 255]]


def test_a_large_heatmap_shows_the_share_of_kept_blocks() -> None:
    kept = torch.zeros(2, 512, dtype=torch.bool)
    kept[0, ::2] = True
    assert pixels(heatmaps.data_uri(kept)) == [[128] * 256, [0] * 256]
