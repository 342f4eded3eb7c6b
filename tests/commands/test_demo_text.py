"""The text of the demonstration and how it trains: split by file, the same each time, resumed to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from blast_compile.commands.demo import corpus
from blast_compile.commands.demo.corpus import Corpus
from blast_compile.commands.demo.model import Size, llama
from blast_compile.commands.demo.training import Batches, Recipe, Training, perplexity

FILES = {f"part{number}.py": f"def f{number}(x):\n    return x + {number}\n" * 20 for number in range(60)}
TINY = Size(hidden=32, intermediate=64, layers=1, heads=1, kv_heads=1, prompt=16, vocabulary=300, tied=True)
RECIPE = Recipe(steps=6, lr=1e-2, batch=4, length=8, warmup=2)


@pytest.fixture
def text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Corpus:
    monkeypatch.setattr(corpus, "library_files", lambda: iter(FILES.items()))
    return corpus.of_python(300, folder=tmp_path)


def test_files_go_into_one_of_two_texts(text: Corpus) -> None:
    held_out = [content for path, content in FILES.items() if corpus.is_held_out(path)]
    assert 0 < len(held_out) < 15
    assert text.text(text.held_out) == "".join(held_out)
    assert text.text(text.train) == "".join(content for content in FILES.values() if content not in held_out)
    assert text.train.dtype == torch.int64
    assert text.train.max() < text.vocabulary <= 300


def test_text_is_kept_in_its_folder(text: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "library_files", lambda: iter({"other.py": "pass"}.items()))
    again = corpus.of_python(300, folder=tmp_path)
    assert torch.equal(again.train, text.train)
    assert again.text(text.held_out[:50]) == text.text(text.held_out[:50])


def test_the_library_is_real_text_without_its_tests() -> None:
    files = dict(corpus.library_files())
    assert "def dataclass" in files["dataclasses.py"]
    assert not [path for path in files if path.startswith(("test/", "encodings/", "site-packages/"))]
    share = sum(map(corpus.is_held_out, files)) / len(files)
    assert 0.06 < share < 0.14


def test_no_held_out_file_outweighs_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    long = {path: content * (100 if corpus.is_held_out(path) else 1) for path, content in FILES.items()}
    monkeypatch.setattr(corpus, "library_files", lambda: iter(long.items()))
    text = corpus.of_python(300)
    num_files = sum(map(corpus.is_held_out, FILES))
    assert len(text.held_out) == num_files * (4096 + 1)
    assert len(text.train) > 0


def test_batches_are_the_text_once_a_pass() -> None:
    batches = Batches(torch.arange(81), RECIPE)
    first, second = (torch.cat([batches[step] for step in steps]) for steps in (range(2), range(2, 4)))
    assert first.shape == (8, 9)
    assert torch.equal(first[:, 1:], first[:, :-1] + 1)
    assert len(set(first[:, 0].tolist())) == 8
    assert not torch.equal(first, second)
    assert torch.equal(Batches(torch.arange(81), RECIPE)[3], batches[3])


def test_training_learns_and_resumes_to_the_bit(text: Corpus) -> None:
    def training() -> Training:
        return Training(llama(TINY, torch.float32, seed=1).requires_grad_(True), text.train, RECIPE)

    whole, cut, resumed = training(), training(), training()
    before = perplexity(whole.model, text.held_out, 8)
    whole.run()
    cut.run(3)
    resumed.load_state_dict(cut.state_dict())
    resumed.run()
    assert (resumed.step, resumed.losses) == (6, whole.losses)
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert perplexity(whole.model, text.held_out, 8) < before / 2
    assert whole.model.training


def test_learning_rate_rises_then_falls_to_nothing() -> None:
    rates = [RECIPE.lr_at(step) for step in range(RECIPE.steps)]
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01])
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert RECIPE.lr_at(RECIPE.steps) == pytest.approx(0.0)
    assert RECIPE.num_tokens == 6 * 4 * 8
