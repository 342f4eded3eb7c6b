"""Real text of any machine: the sources and documentation of Python's own library, as tokens of a BPE trained on them.

Files are for training or held out, by a hash of their path, so the same Python always gives the same split. Of a
held-out file only the beginning counts, so that none outweighs the others: a long one unlike the rest (`pickletools`)
once moved the perplexity of all by more than a method does.
Left out: tables that are no text (`encodings`), and Python's own tests, which many installations lack.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from blast_compile.base.errors import BlastError

_LEFT_OUT = frozenset({"site-packages", "dist-packages", "encodings", "test", "__pycache__"})
_HELD_OUT_SHARE = 10  # one file in so many
_HELD_OUT_TOKENS = 4096  # of each of them, at most
_END = "<|end|>"  # stands behind every file


@dataclass(frozen=True)
class Corpus:
    """Text as tokens. train, held_out: int64 `[T]`, files one behind the other. tokenizer: of `tokenizers`."""

    tokenizer: Any
    train: Tensor
    held_out: Tensor

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        size: int = self.tokenizer.get_vocab_size()
        return size

    def text(self, tokens: Tensor) -> str:
        """What `tokens` `[T]` spell."""
        spelt: str = self.tokenizer.decode(tokens.tolist())
        return spelt

    def save(self, folder: Path) -> None:
        """Writes the tokenizer and the tokens into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save(str(folder / "tokenizer.json"))
        save_file({"train": self.train, "held_out": self.held_out}, folder / "tokens.safetensors")

    @classmethod
    def load(cls, folder: Path) -> Corpus:
        """What `save` wrote."""
        tokens = load_file(folder / "tokens.safetensors")
        return cls(_tokenizers().Tokenizer.from_file(str(folder / "tokenizer.json")), **tokens)


def of_python(vocabulary: int = 2048, *, folder: Path | None = None) -> Corpus:
    """The library of the Python that runs: a second to train the tokenizer, some seconds to encode four million tokens.

    folder: keeps the result in a subfolder and reads it from there the next time. Raises `BlastError` without
    tokenizers.
    """
    kept = None if folder is None else folder / name(vocabulary)
    if kept is not None and (kept / "tokens.safetensors").exists():
        return Corpus.load(kept)
    files = dict(library_files())
    train = [text for path, text in files.items() if not is_held_out(path)]
    held_out = [text for path, text in files.items() if is_held_out(path)]
    tokenizer = _trained(train, vocabulary)
    corpus = Corpus(tokenizer, _encoded(tokenizer, train), _encoded(tokenizer, held_out, _HELD_OUT_TOKENS))
    if kept is not None:
        corpus.save(kept)
    return corpus


def name(vocabulary: int) -> str:
    """What text and split are called: equal names, equal tokens."""
    return f"python-{platform.python_version()}-{vocabulary}-{_HELD_OUT_SHARE}x{_HELD_OUT_TOKENS}"


def library_files() -> Iterator[tuple[str, str]]:
    """Path inside the library and text of each source file, sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(root.rglob("*.py")):
        inner = path.relative_to(root)
        if not _LEFT_OUT & set(inner.parts):
            yield inner.as_posix(), path.read_text(encoding="utf-8", errors="replace")


def is_held_out(path: str) -> bool:
    """Whether the file at `path` is kept from training."""
    return int(hashlib.sha256(path.encode()).hexdigest(), 16) % _HELD_OUT_SHARE == 0


def _trained(texts: list[str], vocabulary: int) -> Any:
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_END],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _encoded(tokenizer: Any, texts: list[str], most: int | None = None) -> Tensor:
    """All texts, or the first `most` tokens of each."""
    end: int = tokenizer.token_to_id(_END)
    ids = [np.array([*encoding.ids[:most], end]) for encoding in tokenizer.encode_batch(texts)]
    return torch.from_numpy(np.concatenate(ids))


def _tokenizers() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise BlastError("expected tokenizers, got none; pip install 'blast-compile[hf]'") from error
    return tokenizers
