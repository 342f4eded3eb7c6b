"""Whole models for `python -m tests.hashes`: tiny ones of transformers, compiled, and what learns their masks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_type_hints

import torch
import transformers
from torch import Tensor, nn

import blast_compile as blast
from tests.hashes.cases import Entry, Hashes, digest

_COMMON: dict[str, Any] = {
    "attn_implementation": "eager",
    "use_cache": False,
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "vocab_size": 96,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MLP = {**_COMMON, "intermediate_size": 96}
_DECODER = {**_MLP, "num_key_value_heads": 2, "head_dim": 16}
_GPT2 = {"n_embd": 64, "n_layer": 1, "n_head": 4, "n_positions": 64, "n_inner": 96}
_T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
_MOE = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 96}
_IMAGE = {"image_size": 16, "patch_size": 4}
_NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0
)


@dataclass(frozen=True)
class Model:
    """model: name of the class of transformers. config: of its config, and `settings` of that.

    autocast: whether it is trained under autocast to bfloat16.
    """

    model: str
    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    targets: str = "mlp"
    dtype: torch.dtype = torch.float32
    autocast: bool = False
    delegate: str = "aot_eager"
    """Kept from Inductor but for one model: it takes most of a minute for each, and what it makes is not ours."""

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.settings)
        model: nn.Module = getattr(transformers, self.model)(config).to(self.dtype)
        return blast.sparsify_(model, blast.BlockSparse(sparsity=0.5, targets=self.targets))

    def inputs(self) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(0)
        if "image_size" in self.settings:
            return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator).to(self.dtype)}
        return {"input_ids": torch.randint(3, 96, (2, 9), generator=generator)}

    def compiled(self, model: nn.Module) -> Any:
        torch._dynamo.reset()
        return torch.compile(model, backend="blast", options={"delegate": self.delegate, "fallback": "error"})


def _causal(name: str, **settings: Any) -> Model:
    return Model(f"{name}ForCausalLM", f"{name}Config", {**_DECODER, **settings})


MODELS = {
    "llama": _causal("Llama", num_hidden_layers=2),
    "gpt2": Model("GPT2LMHeadModel", "GPT2Config", {**_COMMON, **_NO_DROPOUT, **_GPT2}, targets="all"),
    "bert": Model("BertForMaskedLM", "BertConfig", {**_MLP, **_NO_DROPOUT}),
    "qwen2_moe": _causal("Qwen2Moe", **_MOE),
    "phi3 bfloat16": Model("Phi3ForCausalLM", "Phi3Config", _DECODER, dtype=torch.bfloat16),
    "vit": Model("ViTForImageClassification", "ViTConfig", {**_MLP, **_NO_DROPOUT, **_IMAGE}),
    "t5": Model("T5EncoderModel", "T5Config", {**_COMMON, **_T5}),
    "falcon autocast": Model(
        "FalconForCausalLM", "FalconConfig", {**_COMMON, **_NO_DROPOUT, "ffn_hidden_size": 96}, autocast=True
    ),
    "opt": Model("OPTForCausalLM", "OPTConfig", {**_COMMON, **_NO_DROPOUT, "ffn_dim": 96, "word_embed_proj_dim": 64}),
    "gemma2": _causal("Gemma2"),
    "clip text": Model("CLIPTextModel", "CLIPTextConfig", {**_MLP, "projection_dim": 64}),
    "nemotron": _causal("Nemotron"),
}
NEWEST = "avx512_bf16"
FEW = ("llama", "gpt2")
PARTS = ("masked", "training", "packed")
OTHER_PARTS = {
    "llama inductor": ("training",),
    "learning": ("magnitude", "wanda", "sparsegpt", "dead blocks", "unpacked", "sparsifier"),
}
INDUCTOR = Model("LlamaForCausalLM", "LlamaConfig", _DECODER, delegate="inductor")


def model_entries(isa: str) -> Iterator[Entry]:
    """All models on the newest instruction set, and some on the others; that of Inductor, which is slow, once.

    What a model adds to its ops does not depend on the instruction set, but the time to compile its kernels does.
    """
    for name in MODELS if isa == NEWEST else FEW:
        yield name, partial(hashes_of_model, name, MODELS[name])
    if isa == NEWEST:
        yield "llama inductor", partial(hashes_of_model, "llama inductor", INDUCTOR)
    yield "learning", learned


def parts(name: str) -> list[str]:
    """The names of the hashes of an entry."""
    return [f"{name} {part}" for part in OTHER_PARTS.get(name, PARTS)]


def hashes_of_model(name: str, recipe: Model) -> Hashes:
    """Logits of the masked and of the packed model, and loss and gradients of the masked one; or what is asked for."""
    model, inputs = recipe.build(), recipe.inputs()
    cast = torch.autocast("cpu", torch.bfloat16) if recipe.autocast else nullcontext()

    def logits() -> Tensor:
        result: Tensor = recipe.compiled(model)(**inputs)[0]
        return result

    def training() -> list[Tensor | None]:
        model.train()
        loss = logits().float().square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return [loss, *(parameter.grad for _, parameter in sorted(model.named_parameters()))]

    def inference() -> list[Tensor | None]:
        model.eval()
        with torch.no_grad():
            return [logits()]

    steps = {"masked": inference, "training": training, "packed": inference}
    hashes = {}
    for part in parts(name):
        if part.endswith("packed"):
            blast.pack_(model)
        with cast:
            hashes[part] = digest(steps[part.removeprefix(f"{name} ")]())
    return hashes


class _OneStep:
    """A schedule for `Sparsifier`: sparser at every step."""

    begin, end = 0, 4

    def target(self, step: int) -> float:
        return 0.15 * min(step, self.end)


def learned() -> Hashes:
    """What prunes, learns masks and removes dead blocks; blocks of 4, which have no kernels, so they are the same."""
    config, hashes = blast.BlockSparse(block=4, sparsity=0.6, targets="all"), {}
    methods: tuple[Literal["magnitude", "wanda", "sparsegpt"], ...] = ("magnitude", "wanda", "sparsegpt")
    for method in methods:
        model, x = _mlp()
        blast.prune_(model, config, method=method, data=[x], progress=False)
        hashes[f"learning {method}"] = _state(model)
    with torch.no_grad():
        torch._dynamo.reset()
        blast.pack_(model, example_inputs=x)
    hashes["learning dead blocks"] = _state(model)
    hashes["learning unpacked"] = _state(blast.unpack_(model))
    model, x = _mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    prune_and_grow = get_type_hints(blast.Sparsifier.__init__)["config"]  # no name of the face
    sparsifier = blast.Sparsifier(model, prune_and_grow(_OneStep(), config, interval=1, grow_frac=0.2), optimizer)
    for _ in range(6):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        sparsifier.step()
    hashes["learning sparsifier"] = _state(model)
    return hashes


def _mlp() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 42), nn.ReLU(), nn.Linear(42, 24)), torch.randn(40, 24)


def _state(model: nn.Module) -> str:
    return digest(tensor for _, tensor in sorted(model.state_dict().items()))
