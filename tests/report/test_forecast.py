"""Forecasts against what models really hold, against published sizes, and against a roofline by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel

import blast_compile as blast
from blast_compile.base.errors import OptionsError
from blast_compile.base.processor import cpu_model
from blast_compile.commands.demo.model import Size
from blast_compile.commands.demo.model import llama as llama_of
from blast_compile.report.forecast import claims
from blast_compile.report.forecast.estimate import Setting, forecast
from blast_compile.report.forecast.shapes import LLAMAS, ModelShape, llama, shape_of
from blast_compile.tuning.devices import PROFILES, Device
from tests.commands.calling import call, call_json

MLP = blast.BlockSparse(sparsity=0.95, block=128)
H100 = PROFILES["H100"]


@pytest.fixture(scope="module")
def llamas() -> dict[str, ModelShape]:
    return {name: shape_of(name, llama(name), MLP) for name in LLAMAS}


@pytest.mark.parametrize(
    ("name", "billions"), [("llama-1b", 1.2358), ("llama-8b", 8.03), ("llama-70b", 70.6), ("llama-405b", 405.9)]
)
def test_llamas_have_their_published_sizes(llamas: dict[str, ModelShape], name: str, billions: float) -> None:
    assert llamas[name].num_weights / 1e9 == pytest.approx(billions, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "gain"), [("llama-1b", 2.63), ("llama-8b", 3.0), ("llama-70b", 4.15), ("llama-405b", 4.38)]
)
def test_memory_shrinks_as_amdahl_allows(llamas: dict[str, ModelShape], name: str, gain: float) -> None:
    """Within what the index and the size classes of packed layers take."""
    assert 1 / (1 - 0.95 * llamas[name].sparse_share) == pytest.approx(gain, rel=5e-3)
    assert 0.98 * gain < forecast(llamas[name], Setting(H100)).memory_gain < gain * 1.005


def test_fewer_gpus_hold_the_largest_one_than_the_paper_claims(llamas: dict[str, ModelShape]) -> None:
    found = forecast(llamas["llama-405b"], Setting(H100))
    claim = claims.of_model("llama-405b", "fewer GPUs")
    assert claim is not None
    assert (found.dense.devices_needed, found.sparse.devices_needed) == (12, 3)
    assert found.dense.devices_needed / found.sparse.devices_needed > claim.gain


def tiny_llama(*, tied: bool) -> nn.Module:
    size = Size(hidden=64, intermediate=160, layers=2, heads=4, kv_heads=2, prompt=16, vocabulary=100, tied=tied)
    return llama_of(size)


def tiny_gpt2() -> nn.Module:
    config = GPT2Config(vocab_size=100, n_embd=64, n_layer=2, n_head=4, bos_token_id=None, eos_token_id=None)
    model: Any = GPT2LMHeadModel(config)
    return cast(nn.Module, model.to(torch.bfloat16))


@pytest.mark.parametrize("make", [lambda: tiny_llama(tied=True), lambda: tiny_llama(tied=False), tiny_gpt2])
def test_memory_is_what_a_packed_model_holds(make: Any) -> None:
    config = blast.BlockSparse(sparsity=0.3, block=8)  # of so many blocks that some are spare
    model = make()
    found = forecast(shape_of("tiny", model, config), Setting(H100, sparsity=0.3, block=8))
    assert found.dense.weight_bytes == sum(tensor.nbytes for tensor in model.parameters())
    blast.pack_(blast.sparsify_(model, config))
    index = sum(buffer.nbytes for name, buffer in model.named_buffers() if name.endswith("block_index"))
    assert found.sparse.weight_bytes == sum(tensor.nbytes for tensor in model.parameters()) + index


def test_the_cache_is_what_keys_and_values_take() -> None:
    shape = shape_of("tiny", tiny_llama(tied=True), blast.BlockSparse(block=16))
    found = forecast(shape, Setting(H100, block=16, context=100, prompt=28, batch=3))
    assert found.dense.cache_bytes == 3 * 128 * 2 * (2 * 2 * 16) * 2
    assert found.sparse.cache_bytes == found.dense.cache_bytes


def device(bandwidth: float, rate: float) -> Device:
    return replace(H100, bandwidth=bandwidth, rates=dict.fromkeys(H100.rates, rate))


def test_decoding_takes_the_time_that_weights_take_to_move() -> None:
    shape = shape_of("tiny", tiny_llama(tied=False), blast.BlockSparse(block=16))
    found = forecast(shape, Setting(device(1e9, 1e30), sparsity=0.8, block=16, context=0))
    read = sum(2 * linear.count * linear.shape[0] * linear.shape[1] for linear in shape.linears)
    assert found.dense.decode_s is not None
    assert read / 1e9 < found.dense.decode_s < 1.05 * read / 1e9  # activations come on top


def test_reading_a_prompt_takes_the_time_of_its_operations() -> None:
    shape = shape_of("tiny", tiny_llama(tied=False), blast.BlockSparse(block=16))
    found = forecast(shape, Setting(device(1e30, 1e9), sparsity=0.0, block=16, prompt=10))
    body = sum(linear.count * linear.shape[0] * linear.shape[1] for linear in shape.linears if not linear.is_head)
    head = 100 * 64  # of the last token alone
    attention = 4 * 10 * 5 * 2 * 4 * 16
    assert found.dense.prefill_s == pytest.approx((2 * (10 * body + head) + attention) / 1e9, rel=1e-6)
    assert found.prefill_gain == pytest.approx(1.0)


def test_devices_share_the_time(llamas: dict[str, ModelShape]) -> None:
    one, four = (forecast(llamas["llama-8b"], Setting(H100, devices=devices)) for devices in (1, 4))
    assert four.sparse.decode_s is not None
    assert one.sparse.decode_s == pytest.approx(4 * four.sparse.decode_s)
    assert one.sparse.weight_bytes == four.sparse.weight_bytes


def test_an_encoder_neither_decodes_nor_keeps_a_cache() -> None:
    config = BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    shape = shape_of("bert", BertForMaskedLM(config), blast.BlockSparse(block=16))
    found = forecast(shape, Setting(device(1e30, 1e9), sparsity=0.0, block=16, prompt=10))
    assert (found.dense.decode_s, found.decode_gain, found.dense.cache_bytes) == (None, None, 0.0)
    weights = sum(linear.count * linear.shape[0] * linear.shape[1] for linear in shape.linears)  # all for every token
    attention = 4 * 10 * 10 * 2 * 4 * 16  # each token sees all others
    assert found.dense.prefill_s == pytest.approx((2 * 10 * weights + attention) / 1e9, rel=1e-6)


def test_plan_of_an_encoder_says_that_it_makes_no_tokens(tmp_path: Path) -> None:
    config = BertConfig(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
    config.architectures = ["BertForMaskedLM"]
    config.save_pretrained(tmp_path / "bert")
    text = " ".join(call("plan", str(tmp_path / "bert"), "--block", "16").split())
    assert "bert, 2.08M dense" in text
    assert "bert makes no tokens: there is no decode and no cache, and faster means its prefill." in text
    (model,) = call_json("plan", str(tmp_path / "bert"), "--block", "16")["models"]
    assert model["decode_gain"] is model["dense"]["decode_s"] is None
    assert model["prefill_gain"] > 1


def test_targets_that_mean_nothing_are_an_error() -> None:
    with pytest.raises(OptionsError, match="expected targets that mean linear layers of tiny"):
        shape_of("tiny", tiny_gpt2(), blast.BlockSparse(targets=["nothing"]))


def test_plan_prints_claims_beside_ours() -> None:
    text = call("plan")
    for part in ("llama-405b, 406B", "4.00x", "2.9x fewer GPUs (v2)", "1.6x inference faster (v1)", "4.45x (v2)"):
        assert part in text
    assert "llama-70b does not fit 1 x H100 dense; sparse it does." in text


def test_plan_gives_json_of_one_model() -> None:
    plain = call_json("plan", "llama-1b", "--device", "this-cpu", "--sparsity", "0.9", "--block", "32")
    (found,) = plain["models"]
    assert found["name"] == "llama-1b"
    text = call("plan", "llama-1b", "--device", "this-cpu", "--block", "32")
    assert "what the cost model expects" in text
    assert f"1 x {cpu_model()}, batch 1" in " ".join(text.split())
    assert plain["setting"]["device"] == cpu_model()
    assert found["decode_gain"] > 1.5
    assert plain["setting"]["sparsity"] == 0.9


def test_plan_takes_any_model() -> None:
    text = call("plan", "tests.commands.made:dense_with_inputs", "--targets", "ups|downs", "--block", "4")
    assert "tests.commands.made:dense_with_inputs" in text


def test_plan_names_what_it_takes() -> None:
    text = call("plan", "nosuch", exit_code=1)
    assert text.startswith("error: expected llama-1b, llama-8b, llama-70b, llama-405b, a folder of transformers, ")


@pytest.mark.parametrize("options", [("--device", "abacus"), ("--sparsity", "2"), ("--dtype", "int8")])
def test_a_wrong_command_line_ends_with_2(options: tuple[str, ...]) -> None:
    call("plan", *options, exit_code=2)
