"""A whole Llama-shaped model on a GPU: decode of one stream and prefill, dense and sparse, and the memory of both.

The model is written out here in plain torch, so that nothing but torch is needed; both sides share every line but the
MLP, are compiled by Inductor one block at a time, and run as CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.on_gpu import events
from benchmarks.on_gpu.cases import SHAPES, Case
from benchmarks.on_gpu.isolated import Give
from benchmarks.on_gpu.rivals import DENSE, OURS
from benchmarks.on_gpu.rows import GpuDevice, row_of
from benchmarks.on_gpu.tensors import sparse_layers
from blast_compile.ops import register

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Llama:
    """A model by its shape. heads, kv_heads: of queries, and of keys and values; context: tokens of the cache."""

    model: str
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int = 128256
    context: int = 512

    @property
    def features(self) -> int:
        """Of the residual stream."""
        return SHAPES[self.model].features


LLAMAS = (Llama("llama-1b", 16, 32, 8), Llama("llama-8b", 32, 32, 8))


class DenseMlp(nn.Module):
    """Gate and up as one product."""

    def __init__(self, hidden: int, features: int, where: str) -> None:
        super().__init__()
        self.both, self.down = _linear(2 * hidden, features, where), _linear(features, hidden, where)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[1, T, K]`."""
        gate, up = F.linear(x, self.both).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, self.down)


class SparseMlp(nn.Module):
    """The fused op on packed layers."""

    def __init__(self, case: Case, generator: torch.Generator, where: str) -> None:
        super().__init__()
        self.case = case
        for name, layer in zip(("gate", "up", "down"), sparse_layers(case, where, generator), strict=True):
            self.register_buffer(name, layer.operand)
            self.register_buffer(f"{name}_index", layer.index)

    def forward(self, x: Tensor) -> Tensor:
        """x: `[1, T, K]`."""
        parts = [
            part
            for name in ("gate", "up", "down")
            for part in (getattr(self, name), getattr(self, f"{name}_index"), None)
        ]
        hidden, features = self.case.shape.hidden, self.case.shape.features
        block = [self.case.block, self.case.block]
        y: Tensor = torch.ops.blast.gated_mlp.nograd(x, *parts, None, hidden, features, block, "silu", register.ABI)
        return y


class Block(nn.Module):
    """Attention with a cache of fixed size, then an MLP."""

    def __init__(self, llama: Llama, mlp: nn.Module, where: str) -> None:
        super().__init__()
        K, self.head = llama.features, llama.features // llama.heads
        self.heads, self.kv_heads = llama.heads, llama.kv_heads
        self.norms = nn.Parameter(torch.ones(2, K, device=where, dtype=DTYPE))
        self.qkv = _linear((llama.heads + 2 * llama.kv_heads) * self.head, K, where)
        self.out = _linear(K, K, where)
        self.mlp = mlp
        shape = (2, 1, llama.kv_heads, llama.context, self.head)
        self.register_buffer("cache", torch.zeros(shape, device=where, dtype=DTYPE))
        self.cache: Tensor

    def forward(self, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """x: `[1, T, K]`. places: where its tokens stand in the cache, int64 `[T]`. mask: bool `[T, context]`."""
        normed = F.rms_norm(x, x.shape[-1:], self.norms[0])
        heads = F.linear(normed, self.qkv).view(*x.shape[:-1], -1, self.head).transpose(1, 2)
        q, k, v = torch.split(heads, [self.heads, self.kv_heads, self.kv_heads], dim=1)
        self.cache[0].index_copy_(2, places, k)
        self.cache[1].index_copy_(2, places, v)
        attended = F.scaled_dot_product_attention(q, self.cache[0], self.cache[1], mask, enable_gqa=True)
        x = x + F.linear(attended.transpose(1, 2).flatten(2), self.out)
        y: Tensor = x + self.mlp(F.rms_norm(x, x.shape[-1:], self.norms[1]))
        return y


class Decoder(nn.Module):
    """Embedding, blocks and head, for inference."""

    def __init__(self, llama: Llama, mlps: Sequence[nn.Module], where: str) -> None:
        super().__init__()
        self.llama, self.embedding = llama, _linear(llama.vocabulary, llama.features, where)
        self.blocks = nn.ModuleList(Block(llama, mlp, where) for mlp in mlps)

    def compiled_(self) -> None:
        """Compiles the blocks, which share one graph."""
        for block in self.blocks:
            block.compile(dynamic=False)

    def forward(self, tokens: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """The next token. tokens: int64 `[T]`."""
        x = F.embedding(tokens, self.embedding)[None]
        for block in self.blocks:
            x = block(x, places, mask)
        return F.linear(x[:, -1], self.embedding).argmax(-1)


def work(llama: Llama, give: Give, *, device: GpuDevice, sparsity: float = 0.9, block: int = 64, where: str) -> None:
    """Gives the rows of decode and prefill of a model, dense and sparse. where: torch's device."""
    give(f"{llama.model}: compiling")
    case = Case(SHAPES[llama.model], "gated_mlp", 1, sparsity, block)
    phases = {"decode": 1, "prefill": llama.context}
    calls: dict[str, dict[str, events.Calls]] = {phase: {} for phase in phases}
    peaks: dict[str, int] = {}
    models = []  # alive while their graphs run
    for name in (DENSE, OURS):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        generator = torch.Generator(where).manual_seed(0)
        mlps: list[nn.Module] = [
            SparseMlp(case, generator, where)
            if name == OURS
            else DenseMlp(case.shape.hidden, case.shape.features, where)
            for _ in range(llama.layers)
        ]
        model = Decoder(llama, mlps, where).eval().requires_grad_(False)
        model.compiled_()
        models.append(model)
        for phase, count in phases.items():
            calls[phase][name] = [step(model, count)]
            with torch.no_grad():
                calls[phase][name][0]()
        peaks[name] = torch.cuda.max_memory_allocated() - before
    for phase, count in phases.items():
        with torch.no_grad():
            measured = events.measure(calls[phase], rounds=7, seconds=2.0)
        dense_us = measured[DENSE].timing.median_us
        for name, one in measured.items():
            give(
                row_of(
                    "model", case, name, device, one, op=phase, tokens=count, dense_us=dense_us, peak_bytes=peaks[name]
                )
            )


def step(model: Decoder, num_tokens: int) -> Callable[[], Tensor]:
    """A call that runs the last `num_tokens` of a full context."""
    context = model.llama.context
    device = model.embedding.device
    places = torch.arange(context - num_tokens, context, device=device)
    mask = torch.arange(context, device=device) <= places[:, None]
    tokens = torch.randint(model.llama.vocabulary, (num_tokens,), device=device)
    return lambda: model(tokens, places, mask)


def _linear(outputs: int, inputs: int, where: str) -> nn.Parameter:
    values = torch.randn(outputs, inputs, device=where, dtype=DTYPE).mul_(inputs**-0.5)
    return nn.Parameter(values, requires_grad=False)
