"""Masks are read as rules that hold for all sizes: those of transformers, by hand, and what only looks like one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.functional import scaled_dot_product_attention as sdpa

from blast_compile.base import compat
from blast_compile.passes.attention_calls import KEPT, RULE, attention_calls
from blast_compile.passes.mask_rules import MaskRule
from blast_compile.passes.read_masks import ReadMasks
from blast_compile.passes.vocabulary import is_attention
from blast_compile.passes.write_attention import WriteAttention

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def rules(model: Callable[..., Any], *args: Any, dynamic: bool | None = None, **kwargs: Any) -> list[str]:
    """What the masks of a call are read as, in words: a rule, a reason, or "no mask", each once."""
    found: list[str] = []

    def backend(gm: GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        copied = compat.copy_graph_module(gm)
        assert not ReadMasks().run(copied.graph)
        found.extend(_told(node.meta.get(RULE)) for node in attention_calls(copied.graph))
        return gm.forward

    with torch.no_grad():
        torch.compile(model, backend=backend, dynamic=dynamic)(*args, **kwargs)
    return list(dict.fromkeys(found))


def _told(rule: MaskRule | str | None) -> str:
    if not isinstance(rule, MaskRule):
        return rule or "no mask"
    parts = [
        f"k <= q + {rule.upper}" if rule.upper is not None else "",
        f"k >= q + {rule.lower}" if rule.lower is not None else "",
        *["padding"] * len(rule.padding),
        *["documents"] * len(rule.documents),
    ]
    return ", ".join(filter(None, parts)) or "all keys"


SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 50,
}  # fmt: skip
WINDOW = "k <= q + 0, k >= q + -7"
IDS = torch.arange(32).reshape(2, 16) + 3
PADDED = (torch.arange(16) >= torch.tensor([5, 0])[:, None]).long()
PACKED = torch.cat([torch.arange(6), torch.arange(10)])[None].expand(2, -1)


def model_of(name: str, **settings: Any) -> nn.Module:
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    model: Any = transformers.AutoModel
    return model.from_config(config, attn_implementation="sdpa").eval()  # type: ignore[no-any-return]


TRANSFORMERS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "llama with a cache": ("Llama", {}, {}, "no mask"),
    "llama in training": ("Llama", {}, {"use_cache": False}, "k <= q + 0"),
    "llama padded": ("Llama", {}, {"attention_mask": PADDED}, "k <= q + 0, padding"),
    "llama packed": ("Llama", {}, {"use_cache": False, "position_ids": PACKED}, "k <= q + 0, documents"),
    "mistral": ("Mistral", {"sliding_window": 8}, {}, WINDOW),
    "mistral padded": ("Mistral", {"sliding_window": 8}, {"attention_mask": PADDED}, WINDOW + ", padding"),
    "mistral within its window": ("Mistral", {"sliding_window": 64}, {"use_cache": False}, "k <= q + 0, k >= q + -63"),
    "qwen3 padded": ("Qwen3", {"head_dim": 8}, {"attention_mask": PADDED}, "k <= q + 0, padding"),
    "bert padded": ("Bert", {}, {"attention_mask": PADDED}, "padding"),
    "gpt2 in training": ("GPT2", {"n_embd": 32, "n_layer": 1, "n_head": 4}, {"use_cache": False}, "k <= q + 0"),
}  # fmt: skip


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_masks_of_transformers(name: str, dynamic: bool | None) -> None:
    kind, settings, given, wanted = TRANSFORMERS[name]
    assert rules(model_of(kind, **settings), IDS, dynamic=dynamic, **given) == [wanted]


def test_a_static_cache_counts_its_tokens() -> None:
    model = model_of("Llama")
    cache = transformers.StaticCache(config=model.config, max_cache_len=32)  # type: ignore[arg-type]
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    (rule,) = rules(model, IDS[:, :4], past_key_values=cache)
    assert rule.startswith("k <= q + l_")
    assert rule.endswith("cumulative_length")


def test_layers_of_two_kinds() -> None:
    model = model_of("Gemma3Text", head_dim=8, sliding_window=4, layer_types=["sliding_attention", "full_attention"])
    assert rules(model, IDS, use_cache=False) == ["k <= q + 0, k >= q + -3", "k <= q + 0"]


class Masked(nn.Module):
    """Attention of one input to itself under a mask that a function makes of it and of another input."""

    def __init__(self, mask: Callable[..., Tensor]) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        y: Tensor = sdpa(x, x, x, attn_mask=self.mask(x.shape[2], given))
        return y


def positions(L: int) -> tuple[Tensor, Tensor]:
    tokens = torch.arange(L)
    return tokens[:, None], tokens[None, :]


ASKS = "no rule says what its mask asks"
BY_HAND: dict[str, tuple[Callable[..., Tensor], str]] = {
    "tril": (lambda L, _: torch.ones(1, 1, L, L, dtype=torch.bool).tril(), "k <= q + 0"),
    "tril of numbers": (lambda L, _: torch.ones(L, L).tril().bool()[None, None], "Piecewise"),
    "not triu": (lambda L, _: ~torch.ones(L, L, dtype=torch.bool).triu(1)[None, None], "k <= q + 0"),
    "comparison": (lambda L, _: (positions(L)[0] >= positions(L)[1])[None, None], "k <= q + 0"),
    "difference": (lambda L, _: (positions(L)[0] - positions(L)[1] >= 0)[None, None], "k <= q + 0"),
    "shifted": (lambda L, _: (positions(L)[0] > positions(L)[1])[None, None], "k <= q + -1"),
    "window": (lambda L, _: ((positions(L)[0] - positions(L)[1]).abs() <= 3)[None, None], "k <= q + 3, k >= q + -3"),
    "padding": (lambda _, given: given[:, None, None, :], "padding"),
    "padding of queries too": (lambda _, given: (given[:, None] & given[..., None])[:, None], ASKS),
    "first keys": (lambda L, _: (positions(L)[1] < 5)[None, None].expand(1, 1, L, L), ASKS),
    "every other key": (lambda L, _: (positions(L)[1] % 2 == 0)[None, None].expand(1, 1, L, L), "mod"),
    "either": (
        lambda L, _: ((positions(L)[0] >= positions(L)[1]) | (positions(L)[1] < 3))[None, None],
        ASKS,
    ),
    "of data": (lambda L, given: (given.cumsum(-1)[:, None] >= positions(L)[1])[:, None], "a cumsum"),
    "the contrary": (lambda L, given: given[:, None, None, :].expand(2, 1, L, L).clone().logical_not(), ASKS),
}  # fmt: skip


@pytest.mark.parametrize("name", BY_HAND)
def test_masks_by_hand(name: str) -> None:
    mask, wanted = BY_HAND[name]
    x, given = torch.randn(2, 2, 16, 8), torch.rand(2, 16) > 0.3
    (found,) = rules(Masked(mask), x, given)
    assert wanted in found


def attention_of(
    model: nn.Module, *args: Tensor, dynamic: bool | None = True
) -> tuple[Callable[..., Tensor], list[str]]:
    """The model after the two passes, run node by node, and why calls in it stayed torch's."""
    reasons: list[str] = []

    def backend(gm: GraphModule, _inputs: Sequence[Any]) -> Callable[..., Any]:
        copied = compat.copy_graph_module(gm)
        ReadMasks().run(copied.graph)
        WriteAttention().run(copied.graph)
        copied.graph.lint()
        copied.recompile()
        reasons.extend(str(node.meta[KEPT]) for node in attention_calls(copied.graph))
        assert any(map(is_attention, copied.graph.nodes)) or reasons
        return copied.forward

    torch._dynamo.reset()
    run = torch.compile(model, backend=backend, dynamic=dynamic, fullgraph=True)
    run(*args)
    return run, reasons


masks = st.fixed_dictionaries(
    {
        "is_causal": st.booleans(),
        "shift": st.sampled_from([0, 0, 0, 1, -2]),
        "window": st.sampled_from([None, None, 1, 3, 20]),
        "is_padded": st.booleans(),
        "restarts": st.booleans(),
        "seed": st.integers(0, 99),
    }
)


@hypothesis.settings(max_examples=25)
@hypothesis.given(masks)
def test_a_rule_holds_past_the_size_at_which_it_was_read(case: dict[str, Any]) -> None:
    """Captured once at 16 tokens, run at more and at fewer; or kept, which is right too."""

    def mask(L: int, given: Tensor, ids: Tensor) -> Tensor:
        q, k = torch.arange(L)[:, None], torch.arange(L)[None, :]
        found = torch.ones((), dtype=torch.bool).expand(1, 1, L, L)
        if case["is_causal"]:
            found = found & (k <= q + case["shift"])
        if case["window"] is not None:
            found = found & (k > q - case["window"])
        if case["is_padded"]:
            found = found & given[:, None, None, :]
        if case["restarts"]:
            documents = (torch.diff(ids, prepend=ids[:, :1] - 1, dim=-1) != 1).cumsum(-1)
            found = found & (documents[:, None, :, None] == documents[:, None, None, :])
        return found

    class Attention(nn.Module):
        def forward(self, x: Tensor, given: Tensor, ids: Tensor) -> Tensor:
            y: Tensor = sdpa(x, x, x, attn_mask=mask(x.shape[2], given, ids), is_causal=False)
            return y

    def inputs(L: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(case["seed"] + L)
        starts = torch.rand(2, L, generator=generator) < 0.15
        ids = torch.stack([_positions(row) for row in starts])
        return torch.randn(2, 2, L, 8, generator=generator), torch.rand(2, L, generator=generator) > 0.3, ids

    with torch.no_grad():
        run, reasons = attention_of(Attention(), *inputs(16))
        hypothesis.event("kept" if reasons else "written")
        for L in (16, 37, 5):
            given = inputs(L)
            torch.testing.assert_close(run(*given), Attention()(*given))


def _positions(starts: Tensor) -> Tensor:
    """Positions that begin anew where told."""
    found, at = [], 0
    for is_start in starts.tolist():
        at = 0 if is_start else at
        found.append(at)
        at += 1
    return torch.tensor(found)


def with_a_hole(L: int, _given: Tensor) -> Tensor:
    mask = torch.ones(1, 1, L, L, dtype=torch.bool).tril()
    mask[0, 0, 7, 3] = False
    return mask


def with_a_hole_in_a_part(L: int, _given: Tensor) -> Tensor:
    inside = torch.ones(L, L, dtype=torch.bool)
    inside[7, 3] = False
    return (inside & (positions(L)[0] >= positions(L)[1]))[None, None]


def of_positions_that_change(L: int, _given: Tensor) -> Tensor:
    keys = torch.arange(L)
    keys += 1
    return (positions(L)[0] >= keys)[None, None]


def of_padding_that_changes(L: int, given: Tensor) -> Tensor:
    mask = given[:, None, None, :] & torch.ones(L, L, dtype=torch.bool).tril()
    given.fill_(True)
    return mask


def that_changes(L: int, given: Tensor) -> Tensor:
    mask = torch.ones(L, L, dtype=torch.bool).tril() & given[:, None, None, :]
    view = mask[:, 0]
    view[:, 2, 1] = False
    return mask


WRITTEN = (with_a_hole, with_a_hole_in_a_part, of_positions_that_change, of_padding_that_changes, that_changes)


@pytest.mark.parametrize("mask", WRITTEN)
def test_masks_that_something_is_written_to_are_no_rules(mask: Callable[..., Tensor]) -> None:
    x, given = torch.randn(2, 2, 16, 8), torch.rand(2, 16) > 0.4
    with torch.no_grad():
        run, reasons = attention_of(Masked(mask), x, given.clone(), dynamic=None)
        assert len(reasons) == 1
        assert "changes before the call" in reasons[0] or mask is of_positions_that_change  # whose `+=` is not read
        torch.testing.assert_close(run(x, given.clone()), Masked(mask)(x, given.clone()))


@pytest.mark.parametrize("name", ["llama padded", "llama packed", "mistral padded", "bert padded"])
def test_models_compute_what_they_did(name: str) -> None:
    kind, settings, given, _ = TRANSFORMERS[name]
    model = model_of(kind, **settings)
    with torch.no_grad():
        compiled = torch.compile(model, backend="blast", options={"delegate": "aot_eager", "fallback": "error"})
        real = given["attention_mask"].bool() if "attention_mask" in given else torch.ones(2, 16, dtype=torch.bool)
        found, wanted = compiled(IDS, **given)[0], model(IDS, **given)[0]
        torch.testing.assert_close(found[real], wanted[real])


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("padding", [None, "left"])
def test_generated_tokens_stay(cache: str, padding: str | None) -> None:
    torch.manual_seed(0)
    model: Any = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES))
    model.eval()
    given = {"attention_mask": PADDED} if padding else {"attention_mask": torch.ones_like(PADDED)}
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "cache_implementation": cache}
    wanted = model.generate(IDS, **given, **settings, pad_token_id=0)
    model.forward = torch.compile(model.forward, backend="blast", options={"delegate": "eager", "fallback": "error"})
    assert torch.equal(model.generate(IDS, **given, **settings, pad_token_id=0), wanted)
