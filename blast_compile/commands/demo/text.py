"""Prompts for models: cut from tokens, or from the bytes of Python's library where a model has no tokenizer."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import torch
from torch import Tensor

from blast_compile.commands.demo.model import Size


def prompts(tokens: Tensor, size: Size) -> tuple[Tensor, Tensor]:
    """`[windows, prompt]` of `tokens` `[T]`, one `context` after the other, and what follows the first, `[decoded]`."""
    pieces = tokens[: size.windows * size.context].view(size.windows, size.context)
    return pieces[:, : size.prompt], pieces[0, size.prompt :]


def bytes_of_python(length: int) -> Tensor:
    """The first bytes of the library's sources, int64 `[length]`, always the same for a Python."""
    text = bytearray()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        text += path.read_bytes()
        if len(text) >= length:
            break
    return torch.frombuffer(text, dtype=torch.uint8)[:length].long()
