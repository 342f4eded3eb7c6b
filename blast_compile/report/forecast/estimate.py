"""Memory of a model, and the time of a token, from the cost model: what bandwidth and arithmetic of a device allow.

GPUs are taken at their data sheets, so their times are bounds that no kernel reaches; `this-cpu` is taken as measured,
with the time that the cost model expects of a kernel. Devices share everything evenly; what they say to each other
costs nothing here, and neither do norms, sampling and launches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from blast_compile.codegen.cpp.config import default_config
from blast_compile.codegen.dtypes import item_bytes
from blast_compile.codegen.spec import Dtype, Epilogue, Spec
from blast_compile.kernels.plans.problem import Problem
from blast_compile.masks import layout
from blast_compile.report.forecast.shapes import Linear, ModelShape
from blast_compile.tuning import cost
from blast_compile.tuning.devices import Device

USABLE = 0.9
"""Of a device's memory: the rest is for activations, workspaces and the runtime. Our own choice."""


@dataclass(frozen=True)
class Setting:
    """What is run: `batch` streams with `context` tokens behind them, prompts of `prompt` tokens, on `devices`."""

    device: Device
    devices: int = 1
    dtype: Dtype = "bfloat16"
    sparsity: float = 0.95
    block: int = 128
    context: int = 4096
    prompt: int = 2048
    batch: int = 1


@dataclass(frozen=True)
class Estimate:
    """Bytes of all devices together, and seconds.

    decode_s: of a step, a token for each stream; None for models that do not decode, which keep no cache either.
    prefill_s: of prompts, which is all that such a model does. devices_needed: the fewest that hold the weights and the
    cache; 0 where a device's memory is not known.
    """

    weight_bytes: float
    cache_bytes: float
    decode_s: float | None
    prefill_s: float
    devices_needed: int


@dataclass(frozen=True)
class Forecast:
    """A model with every block, and with the kept ones alone."""

    shape: ModelShape
    setting: Setting
    dense: Estimate
    sparse: Estimate

    @property
    def memory_gain(self) -> float:
        """How much smaller the weights are."""
        return self.dense.weight_bytes / self.sparse.weight_bytes

    @property
    def decode_gain(self) -> float | None:
        """How much faster a step of decoding can be, for models that decode."""
        if self.dense.decode_s is None or self.sparse.decode_s is None:
            return None
        return self.dense.decode_s / self.sparse.decode_s

    @property
    def prefill_gain(self) -> float:
        """How much faster a prompt can be read."""
        return self.dense.prefill_s / self.sparse.prefill_s


def forecast(shape: ModelShape, setting: Setting) -> Forecast:
    """Both estimates of a model."""
    return Forecast(shape, setting, _estimate(shape, setting, 0.0), _estimate(shape, setting, setting.sparsity))


def _estimate(shape: ModelShape, setting: Setting, sparsity: float) -> Estimate:
    item = item_bytes(setting.dtype)
    weights = item * shape.other_weights + sum(
        linear.count * _stored_bytes(linear, setting, sparsity) for linear in shape.linears
    )
    cache, decode = 0.0, None
    if shape.decodes:
        cache = setting.batch * (setting.context + setting.prompt) * _cache_bytes_a_token(shape, item)
        linears = sum(_linears_s(shape, setting, sparsity, setting.batch, setting.batch))
        decode = (linears + _attention_s(shape, setting, 1, setting.context)) / setting.devices
    read = setting.batch * setting.prompt
    prefill = sum(_linears_s(shape, setting, sparsity, read, setting.batch if shape.decodes else read))
    behind = setting.prompt / (2 if shape.decodes else 1)  # a decoder's token sees those before it alone
    return Estimate(
        weight_bytes=weights,
        cache_bytes=cache,
        decode_s=decode,
        prefill_s=(prefill + _attention_s(shape, setting, setting.prompt, behind)) / setting.devices,
        devices_needed=_devices_needed(weights + cache, setting.device),
    )


def _linears_s(shape: ModelShape, setting: Setting, sparsity: float, tokens: int, head_tokens: int) -> Iterator[float]:
    for linear in shape.linears:
        density = 1 - sparsity if linear.is_sparse else 1.0
        yield linear.count * _linear_s(linear, setting, density, head_tokens if linear.is_head else tokens)


def _linear_s(linear: Linear, setting: Setting, density: float, tokens: int) -> float:
    """On a CPU by what the cost model expects of a kernel, which for dense layers is ours at full density."""
    problem = _problem(linear, setting, density, tokens)
    if setting.device.kind.startswith("cpu:"):
        return cost.predict(problem, default_config(problem.spec), setting.device)
    if density < 1:
        return cost.limit(problem, setting.device)
    (N, K), item = linear.shape, item_bytes(setting.dtype)
    moved = item * (N * K + tokens * (N + K))
    return setting.device.limit_s(moved, 2.0 * tokens * N * K, setting.dtype)


def _problem(linear: Linear, setting: Setting, density: float, tokens: int) -> Problem:
    spec = Spec(
        op="linear",
        dtype=setting.dtype,
        weight_dtype=setting.dtype,
        block=(setting.block, setting.block),
        epilogues=(Epilogue(),),
        layout="packed",
        target=setting.device.kind,
    )
    return Problem(spec, (linear.shape,), tokens, density, setting.device.units)


def _stored_bytes(linear: Linear, setting: Setting, sparsity: float) -> float:
    """Of one layer: packed, in its size class, with its index; or dense."""
    N, K = linear.shape
    if not sparsity or not linear.is_sparse:
        return N * K * item_bytes(setting.dtype)
    R, C = layout.grid((N, K), (setting.block, setting.block))
    stored = layout.size_class(max(1, R * C - round(sparsity * R * C)), R * C)
    return stored * setting.block**2 * item_bytes(setting.dtype) + cost.INDEX_BYTES * (2 * R + 1 + stored)


def _cache_bytes_a_token(shape: ModelShape, item: int) -> float:
    attention = shape.attention
    return 0 if attention is None else 2 * attention.layers * attention.kv_heads * attention.head_dim * item


def _attention_s(shape: ModelShape, setting: Setting, tokens: int, behind: float) -> float:
    """Of scores and values for `tokens` of each stream, with so many behind each on average.

    Keys and values move once.
    """
    if shape.attention is None:
        return 0.0
    attention, item = shape.attention, item_bytes(setting.dtype)
    operations = 4.0 * setting.batch * tokens * behind * attention.layers * attention.heads * attention.head_dim
    moved = setting.batch * max(behind, tokens) * _cache_bytes_a_token(shape, item)
    return setting.device.limit_s(moved, operations, setting.dtype)


def _devices_needed(num_bytes: float, device: Device) -> int:
    return math.ceil(num_bytes / (USABLE * device.memory_bytes)) if device.memory_bytes else 0
