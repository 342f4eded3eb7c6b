"""Whole models in which nothing is sparse: what is gained by not computing what their masks leave out anyway.

A quarter of Llama-3.2-1B with its heads, over Inductor with frozen weights: decoding with each cache, with and without
the mask that tokenizers pass, and prompts; then a step of training of a small Llama, forward and backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from benchmarks import candidates, verify
from benchmarks.case import Case
from benchmarks.findings import Findings, Report
from benchmarks.settings import name_of
from blast_compile.tuning.timing import interleaved

_QUARTER_1B: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 4, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256 // 4, "max_position_embeddings": 131072,
}  # fmt: skip
_TRAINED: dict[str, Any] = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": 12, "vocab_size": 32000, "max_position_embeddings": 4096,
}  # fmt: skip
_COMPILERS = ("inductor", candidates.OURS)
_BOUND = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
Call = Callable[[], Any]


def compare(report: Report, only: str, *, context: int, trained_tokens: int, rounds: int, quick: bool) -> Findings:
    """Verifies each compiled model against the eager one, then times both. only: how the names of cases begin."""
    findings = Findings()
    for op, dtype, tokens, calls, eager in _cases(context, trained_tokens, quick=quick):
        if not op.startswith(only):
            continue
        training = op == "training step"
        with ExitStack() as settings:
            settings.enter_context(candidates.fair_settings(training=training))
            made = {name: calls(name) for name in _COMPILERS}
            report(f"{op}, {name_of(dtype)}, {tokens} tokens: compiling, verifying")
            wanted = eager()
            for name in list(made):
                error = verify.relative_error(made[name]().float(), wanted.double())
                if error > _BOUND[dtype]:
                    findings.refused.append(f"{op}, {name}: expected results of the eager model, got {error:.1e} off")
                    del made[name]
            report(f"{op}: timing")
            timings = interleaved(made, rounds=rounds, seconds=0.0 if quick else 6.0)
        shape = "12 layers of 768" if training else "4 layers of Llama-3.2-1B"
        case = Case("attention-model", op, shape, name_of(dtype), tokens, 0)
        dense_us = timings["inductor"].median_us if "inductor" in timings else None
        findings.tables.append([case.row(name, timing, dense_us=dense_us) for name, timing in timings.items()])
    return findings


_Case = tuple[str, torch.dtype, int, Callable[[str], Call], Callable[[], Tensor]]


def _cases(context: int, trained_tokens: int, *, quick: bool) -> Iterator[_Case]:
    model = _model(_QUARTER_1B if not quick else _QUARTER_1B | {"num_hidden_layers": 1, "vocab_size": 1000})
    ids = torch.randint(model.config.vocab_size, (1, context), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, context + 1, dtype=torch.long)
    for op, is_static, mask in (
        ("decoding", False, None),
        ("decoding, mask", False, ones),
        ("decoding, static cache", True, None),
    ):
        yield _decoding(op, model, ids, is_static=is_static, mask=mask)
    for op, mask in (("prompt", None), ("prompt, mask", ones[:, :context])):
        yield _prompt(op, model, ids, mask)
    del model
    for dtype in (torch.bfloat16, torch.float32):
        yield _training(dtype, trained_tokens, quick=quick)


def _model(settings: dict[str, Any], dtype: torch.dtype = torch.bfloat16) -> Any:
    torch.manual_seed(0)
    config: Any = transformers.LlamaConfig(**settings)
    config._attn_implementation = "sdpa"
    model: Any = transformers.LlamaForCausalLM(config)
    return model.to(dtype).eval()


def _decoding(op: str, model: Any, ids: Tensor, *, is_static: bool, mask: Tensor | None) -> _Case:
    context = ids.shape[1]

    def filled() -> Any:
        if is_static:
            cache: Any = transformers.StaticCache(config=model.config, max_cache_len=context + 16)
        else:
            cache = transformers.DynamicCache(config=model.config)
        with torch.no_grad():
            model(ids, past_key_values=cache, logits_to_keep=1)
        return cache

    def call_of(run: Callable[..., Any]) -> Call:
        cache, token = filled(), ids[:, :1]

        def call() -> Tensor:
            with torch.no_grad():
                logits: Tensor = run(token, past_key_values=cache, attention_mask=mask).logits
            _forget_last(cache, context)
            return logits

        return call

    eager = call_of(model)
    return op, torch.bfloat16, context, lambda name: call_of(candidates.compiled(name, model)), eager


def _forget_last(cache: Any, context: int) -> None:
    """As it was before the token that was decoded."""
    for layer in cache.layers:
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length.fill_(context)
        else:
            layer.keys, layer.values = layer.keys[:, :, :context], layer.values[:, :, :context]


def _prompt(op: str, model: Any, ids: Tensor, mask: Tensor | None) -> _Case:
    def call_of(run: Callable[..., Any]) -> Call:
        def call() -> Tensor:
            with torch.no_grad():
                logits: Tensor = run(ids, attention_mask=mask, logits_to_keep=1).logits
            return logits

        return call

    eager = call_of(model)
    return op, torch.bfloat16, ids.shape[1], lambda name: call_of(candidates.compiled(name, model)), eager


def _training(dtype: torch.dtype, tokens: int, *, quick: bool) -> _Case:
    model: nn.Module = _model(_TRAINED if not quick else _TRAINED | {"num_hidden_layers": 1}, dtype).train()
    ids = torch.randint(32000, (1, tokens), generator=torch.Generator().manual_seed(0))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def call_of(run: Callable[..., Any]) -> Call:
        def call() -> Tensor:
            loss = run(ids, labels=ids, use_cache=False).loss
            gradients = torch.autograd.grad(loss, parameters)
            return torch.stack([loss.detach().float(), *(one.float().norm() for one in gradients)])

        return call

    eager = call_of(model)
    return "training step", dtype, tokens, lambda name: call_of(candidates.compiled(name, model)), eager
