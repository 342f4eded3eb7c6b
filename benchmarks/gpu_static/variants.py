"""Which kernels are compiled: every op in every layout, for few tokens and for many, and every way to cut one up."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

from blast_compile.codegen.family import is_mlp
from blast_compile.codegen.spec import Dtype, Epilogue, Layout, Op, Spec
from blast_compile.codegen.triton.build import LIST_KEPT
from blast_compile.codegen.triton.config import FEW_TOKENS, TritonConfig, default_config
from blast_compile.codegen.triton.generate import TITLES
from blast_compile.codegen.triton.space import configs

TARGETS = ("cuda:sm_80", "cuda:sm_90", "cuda:sm_100", "cuda:sm_120", "hip:gfx942", "hip:gfx90a")
_TOKENS = (1, 64, 2048)  # of decoding, of a batch of it, and of a prefill
_OTHER_BLOCKS = (32, 128)
_LAYOUTS: tuple[Layout, ...] = ("packed", "masked")
_OTHER_DTYPES: tuple[tuple[Dtype, Dtype], ...] = (
    ("float16", "float16"),
    ("float32", "float32"),
    ("bfloat16", "float32"),
)
_SHORT = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Variant:
    """One kernel for one target. tokens: for which its config is. The rest is as `cross_compile` says."""

    spec: Spec
    config: TritonConfig
    tokens: int
    is_uneven: bool = False
    is_ragged: bool = False
    is_transposed: bool = False
    is_wide: bool = False
    helper: str | None = None

    @property
    def name(self) -> str:
        """What expectations and reports call it, target last."""
        spec = self.spec
        dtype = _SHORT[spec.dtype]
        if spec.weight_dtype != spec.dtype:
            dtype += f"*{_SHORT[spec.weight_dtype]}"
        parts = [spec.op, spec.layout, dtype, f"block {spec.block[0]}", f"{self.tokens} tokens"]
        parts += [self.helper] if self.helper else []
        parts += ["through an activation"] if spec.op == "input_grad" and spec.epilogues else []
        parts += ["without bias"] if spec.op == "linear" and not spec.epilogues[0].bias else []
        parts += ["uneven"] * self.is_uneven + ["ragged"] * self.is_ragged
        parts += ["transposed"] * self.is_transposed + ["wide"] * self.is_wide
        parts += differences(self.config, self.usual)
        return ", ".join((*parts, spec.target.partition(":")[2]))

    @property
    def usual(self) -> TritonConfig:
        """The untuned config."""
        return default_config(self.spec, self.tokens, is_ragged=self.is_ragged)


def variants(targets: tuple[str, ...] = TARGETS) -> Iterator[Variant]:
    """All of them, each kernel once: the config of a weight gradient, say, is the same for any number of tokens."""
    seen = set()
    for target in targets:
        for op in ops():
            for layout in _LAYOUTS:
                for variant in _of_op(op, layout, target):
                    kernel = replace(variant, tokens=0)
                    if kernel not in seen:
                        seen.add(kernel)
                        yield variant


def ops() -> tuple[Op, ...]:
    """The ops that have a Triton kernel of their own."""
    return tuple(op for op in Op.__args__ if op in TITLES)  # type: ignore[attr-defined]


def differences(config: TritonConfig, usual: TritonConfig) -> list[str]:
    """What sets a config apart, as `name=value`."""
    fields = vars(config)
    return [f"{name}={fields[name]}" for name, value in vars(usual).items() if fields[name] != value]


def departing(spec: Spec, tokens: int) -> Iterator[TritonConfig]:
    """Few configs of the search space that together depart from the default in every field in which any does."""
    usual = vars(default_config(spec, tokens))
    departures = {
        config: {name for name, value in vars(config).items() if value != usual[name]}
        for config in configs(spec, tokens)
    }
    missing = set().union(*departures.values())
    while missing:
        best = max(departures, key=lambda config: len(departures[config] & missing))
        missing -= departures[best]
        yield best


def spec_of(op: Op, layout: Layout, target: str, block: int, dtypes: tuple[Dtype, Dtype]) -> Spec:
    """A spec with an epilogue that has every part the op may have."""
    is_gated = op.startswith("gated")
    first = Epilogue("silu", bias=True, gate=is_gated, gate_bias=is_gated, residual=op == "linear")
    epilogues: tuple[Epilogue, ...] = () if op.endswith("grad") else (first,)
    if is_mlp(op):
        epilogues += (Epilogue(bias=True, residual=True),)
    return Spec(op, *dtypes, (block, block), epilogues, layout, target)


def _of_op(op: Op, layout: Layout, target: str) -> Iterator[Variant]:
    # The input gradient of a dense weight walks over its transpose.
    variant = partial(Variant, is_transposed=op == "input_grad" and layout == "masked")
    bf16: tuple[Dtype, Dtype] = ("bfloat16", "bfloat16")
    tokens_of_op = (1, FEW_TOKENS) if is_mlp(op) else _TOKENS
    few, many = tokens_of_op[0], tokens_of_op[-1]
    spec = spec_of(op, layout, target, 64, bf16)
    for tokens in tokens_of_op:
        yield variant(spec, default_config(spec, tokens), tokens)
    config = default_config(spec, many)
    yield variant(spec, default_config(spec, many, is_ragged=True), many, is_ragged=True)
    yield variant(spec, config, many, is_wide=True)
    if op == "weight_grad":
        yield variant(spec, config, many, helper="block_norms")
    if layout == "masked" and op == "linear":
        yield variant(spec, config, many, helper=LIST_KEPT)
    if layout == "masked" and op != "input_grad":
        yield variant(spec, config, many, is_transposed=True)
    other = replace(spec, block=(128, 128))
    for tokens in (few, many):
        for config in departing(other, tokens):
            yield variant(other, config, tokens)
            if config.splits > 1 and op in ("linear", "weight_grad"):
                yield variant(other, config, tokens, helper="reduce")
    if is_mlp(op):
        return  # made of the same products as the linears
    for block, tokens in itertools.product(_OTHER_BLOCKS, (few, many)):
        spec = spec_of(op, layout, target, block, bf16)
        yield variant(spec, default_config(spec, tokens), tokens)
        if (block, tokens) == (_OTHER_BLOCKS[-1], many):  # GPT-2-XL has 1600 features
            yield variant(spec, default_config(spec, tokens), tokens, is_uneven=True)
            yield variant(spec, default_config(spec, tokens, is_ragged=True), tokens, is_ragged=True)
            if op == "linear":
                unbiased = replace(spec, epilogues=(Epilogue(residual=True),))
                yield variant(unbiased, default_config(unbiased, tokens), tokens)
        if op == "input_grad" and tokens == many:
            through = replace(spec, epilogues=(Epilogue("silu", gate=True),))
            yield variant(through, default_config(through, tokens), tokens)
    for dtypes, tokens in itertools.product(_OTHER_DTYPES, (few, many)):
        # Weights in float32 beside 16 bits are those of training, which are masked.
        if dtypes[0] == dtypes[1] or (layout == "masked" and tokens == many):
            spec = spec_of(op, layout, target, 64, dtypes)
            yield variant(spec, default_config(spec, tokens), tokens)
