"""Masks as small PNG images in a page: a pixel a block, dark where kept; many blocks share one, grey by how many."""

from __future__ import annotations

import base64
import struct
import zlib

import torch.nn.functional as F
from torch import Tensor

_MAX_EDGE = 256  # pixels


def data_uri(kept: Tensor) -> str:
    """An image of bool `[R, C]`; its opacity is the share of kept blocks, so that the page chooses the colour."""
    R, C = kept.shape
    edge = (min(R, _MAX_EDGE), min(C, _MAX_EDGE))
    shares = F.adaptive_avg_pool2d(kept.float().cpu()[None], edge)[0]
    opacity = (255 * shares).round().byte().numpy().tobytes()
    return "data:image/png;base64," + base64.b64encode(_png(opacity, edge[1], edge[0])).decode()


def _png(opacity: bytes, width: int, height: int) -> bytes:
    """Black pixels of this opacity (colour type 4: grey and alpha), as the PNG specification lays them out."""
    rows = (opacity[start : start + width] for start in range(0, width * height, width))
    scanlines = b"".join(b"\0" + b"".join(b"\0" + bytes([value]) for value in row) for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 8, 4, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(scanlines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, content) for name, content in chunks)


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
