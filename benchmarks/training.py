"""A Llama-shaped model in training: what one step computes, and whether its gradients are right."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import candidates, verify
from blast_compile.commands.demo.model import Size, llama
from blast_compile.layers.layer import MaskedLayer

SIZE = Size(
    hidden=640, intermediate=2560, layers=12, heads=10, kv_heads=10, prompt=256, decoded=0, vocabulary=8192, tied=True
)


def sized(shape: tuple[int, int]) -> Size:
    """The model with MLPs of another shape, hidden x model size."""
    hidden, features = shape
    heads = max(features // 64, 1)
    return replace(SIZE, hidden=features, intermediate=hidden, heads=heads, kv_heads=heads)


@dataclass(frozen=True)
class Trainee:
    """A model with what trains it. call: the model as its candidate runs it. dtype: bfloat16 means autocast."""

    model: nn.Module
    call: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    dtype: torch.dtype

    @classmethod
    def of(cls, name: str, model: nn.Module, dtype: torch.dtype) -> Trainee:
        """`model` as the candidate `name` runs it, under AdamW."""
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
        return cls(model, candidates.compiled(name, model), optimizer, dtype)

    def gradients(self, tokens: Tensor) -> None:
        """Forward and backward on `tokens` `[B, T]`, gradients from before dropped."""
        self.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.call(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()

    def step(self, tokens: Tensor) -> None:
        """One step of training."""
        self.gradients(tokens)
        self.optimizer.step()


def trainable(size: Size) -> nn.Module:
    """A dense model with random weights in float32; the same at every call."""
    return llama(size, torch.float32).train().requires_grad_(True)


def batch(size: Size, tokens: int, seed: int = 0) -> Tensor:
    """Random tokens `[B, T]`, windows of the model's context, `tokens` in all."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(
        size.vocabulary, (max(tokens // size.prompt, 1), min(size.prompt, tokens)), generator=generator
    )


def error(label: str, trainee: Trainee, dense: nn.Module, tokens: Tensor) -> float:
    """The error of all gradients of a trainee, made from the model `dense`; raises `WrongResult`.

    Relative to those of plain torch in float64 on the same masks; gradients of dropped blocks must be zero.
    """
    trainee.gradients(tokens)
    got = _flat(trainee.model, {})
    plain, masks = copy.deepcopy(dense), _masks(trainee.model)
    for name, mask in masks.items():
        plain.get_parameter(name).data.mul_(mask)
    own = Trainee.of("eager", plain, trainee.dtype)
    own.gradients(tokens)
    own_gradients = _flat(plain, masks)
    Trainee.of("eager", plain.double(), torch.float64).gradients(tokens)
    truth = _flat(plain, masks)
    found = verify.relative_error(got, truth)
    verify.check(f"{label}: gradients", found, verify.relative_error(own_gradients, truth), trainee.dtype)
    return found


def _masks(model: nn.Module) -> dict[str, Tensor]:
    """What the weights of masked layers keep, by the name of the weight."""
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, MaskedLayer)}
    return {f"{name}.weight": layer.mask.elements() for name, layer in layers.items()}


def _flat(model: nn.Module, masks: dict[str, Tensor]) -> Tensor:
    """All gradients in one, those of dropped weights zero."""
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return torch.cat([(grad * masks[name] if name in masks else grad).flatten() for name, grad in found.items()])
