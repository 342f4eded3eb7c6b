"""Trains a causal language model, dense or while a sparsifier learns its masks; stops and resumes at any step.

What happens at a step depends on the recipe, the seed and the step alone, so two models trained with the same seed see
the same text in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaskLearner(Protocol):
    """What a training loop needs of a `Sparsifier`."""

    def step(self) -> Any:
        """To be called once after each step of the optimizer."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Goes on from `state_dict()`."""


@dataclass(frozen=True)
class Recipe:
    """How to train: AdamW under bfloat16 autocast, a short warm-up, then the learning rate falls to zero as a cosine.

    batch, length: windows a step, and tokens of a window. warmup: steps.
    """

    steps: int
    lr: float
    batch: int = 8
    length: int = 128
    warmup: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    seed: int = 0

    @property
    def num_tokens(self) -> int:
        """Tokens that a whole run sees."""
        return self.steps * self.batch * self.length

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.lr * 0.5 * (1 + math.cos(math.pi * done))


class Batches:
    """Windows of a text that do not overlap, in an order drawn anew for each pass, by seed and step alone."""

    def __init__(self, tokens: Tensor, recipe: Recipe) -> None:
        """tokens: int64 `[T]`, of one batch at least."""
        self._recipe = recipe
        self._windows = windows(tokens, recipe.length)
        self._per_pass = len(self._windows) // recipe.batch
        self._order: tuple[int, Tensor] | None = None

    def __getitem__(self, step: int) -> Tensor:
        """The batch of a step, int64 `[batch, length + 1]`: inputs, and targets one further."""
        number, place = divmod(step, self._per_pass)
        if self._order is None or self._order[0] != number:
            generator = torch.Generator().manual_seed(1_000_003 * self._recipe.seed + number)
            self._order = number, torch.randperm(len(self._windows), generator=generator)
        chosen = self._order[1][place * self._recipe.batch : (place + 1) * self._recipe.batch]
        return self._windows[chosen]


class Training:
    """A model, its optimizer and perhaps what learns its masks, at some step."""

    def __init__(self, model: nn.Module, tokens: Tensor, recipe: Recipe) -> None:
        """model: called as transformers models are. tokens: the text, int64 `[T]`."""
        self.model, self.recipe, self.step = model, recipe, 0
        self.optimizer = torch.optim.AdamW(
            _groups(model, recipe.weight_decay), lr=recipe.lr, betas=(0.9, 0.95), fused=True
        )
        self.learner: MaskLearner | None = None
        self.losses: list[float] = []
        self._batches = Batches(tokens, recipe)

    def run(self, until: int | None = None, *, after: Callable[[], object] = lambda: None) -> None:
        """Trains up to step `until`, or to the end; calls `after()` behind each step."""
        self.model.train()
        while self.step < (self.recipe.steps if until is None else until):
            self._one()
            after()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs; tensors are not copied."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "learner": None if self.learner is None else self.learner.state_dict(),
            "step": self.step,
            "losses": self.losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where `state_dict()` was taken, with a model and learner made in the same way."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.learner is not None:
            self.learner.load_state_dict(state["learner"])
        self.step, self.losses = state["step"], list(state["losses"])

    def _one(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.recipe.lr_at(self.step)
        loss = mean_loss(self.model, self._batches[self.step])
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        if self.learner is not None:
            self.learner.step()
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        self.step += 1


def mean_loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Mean cross entropy of each next token of `batch`, int64 `[B, T + 1]`, under bfloat16 autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: nn.Module, tokens: Tensor, length: int, *, batch: int = 32) -> float:
    """The exponential of the mean cross entropy over windows of `tokens` `[T]`, each predicted from its own start."""
    was_training = model.training
    model.eval()
    pieces = windows(tokens, length)
    total = 0.0
    for start in range(0, len(pieces), batch):
        piece = pieces[start : start + batch]
        total += mean_loss(model, piece).item() * len(piece)
    model.train(was_training)
    return math.exp(total / len(pieces))


def windows(tokens: Tensor, length: int) -> Tensor:
    """Every `length` tokens with the one behind them, `[num, length + 1]`; the last tokens may be left over."""
    return tokens.unfold(0, length + 1, length)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; norms and biases do not."""
    decayed = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    others = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
