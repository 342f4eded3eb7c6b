"""What becomes of the MLPs of the models of transformers whose default config, shrunken, builds: `docs/models.md`.

    python -m tests.zoo      writes the table

Nothing in the package is written for one of these models; the table shows what a matcher of graphs finds in them.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.report.explanation import Explanation

DOCUMENT = Path(__file__).parents[1] / "docs" / "models.md"
BEGIN, END = "<!-- python -m tests.zoo -->\n", "<!-- end of table -->\n"
_NAMES = (
    "albert apertus arcee bart beit bert big_bird biogpt bitnet blenderbot bloom camembert clip_text_model "
    "clip_vision_model codegen cohere cohere2 ctrl cvt data2vec-text deberta deberta-v2 deit diffllama dinov2 "
    "dinov3_vit distilbert doge dpt electra ernie ernie4_5 exaone4 falcon gemma gemma2 gemma3_text glm glm4 gpt-sw3 "
    "gpt2 gpt_bigcode gpt_neo gpt_neox gptj granite helium hubert ijepa jamba layoutlm led lfm2 llama "
    "longformer longt5 m2m_100 marian mbart mistral mobilebert mobilevit modernbert moonshine mpnet mpt mra mt5 "
    "nanochat nomic_bert nystromformer olmo olmo2 olmo3 openai-gpt opt pegasus persimmon phi phi3 qwen2 qwen2_moe "
    "qwen3 rembert roberta roformer rwkv seed_oss sew siglip_vision_model smollm3 stablelm starcoder2 "
    "switch_transformers t5 tapas timesformer umt5 unispeech vaultgemma videomae vit vit_mae vit_msn vivit wav2vec2 "
    "wavlm whisper xglm xlm xlm-roberta xlnet yoso"
)
MODELS = _NAMES.split()
_SIZES = {
    64: "hidden_size d_model n_embd dim embed_dim word_embed_proj_dim embedding_size projection_dim",
    96: "intermediate_size d_ff n_inner ffn_dim encoder_ffn_dim decoder_ffn_dim hidden_dim ffn_hidden_size d_inner "
    "vocab_size moe_intermediate_size",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_key_value_heads num_kv_heads "
    "num_decoder_layers expansion_ratio",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
    "num_local_experts num_experts patch_size",
    16: "head_dim d_kv image_size",
    8: "rotary_dim num_mel_bins",
    128: "max_position_embeddings n_positions max_seq_len max_source_positions",
}
_NUMBERS: dict[str, Any] = {name: size for size, names in _SIZES.items() for name in names.split()}
_NUMBERS |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def shrink_(config: Any) -> Any:
    """Gives a config, and those inside it, small sizes and no dropout, in place; returns it."""
    for name, value in list(vars(config).items()):
        if isinstance(value, transformers.PreTrainedConfig):
            shrink_(value)
        elif isinstance(value, int) and not isinstance(value, bool) and name in _NUMBERS:
            setattr(config, name, _NUMBERS[name])
        elif isinstance(value, float) and "drop" in name:
            setattr(config, name, 0.0)
        elif name == "layer_types" and isinstance(value, list):
            config.layer_types = value[-2:]
    return config


def build(model_type: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small dense model in eval mode, and inputs for it."""
    config = shrink_(transformers.AutoConfig.for_model(model_type))
    config._attn_implementation, config.use_cache = "eager", False
    torch.manual_seed(0)
    auto: Any = transformers.AutoModel
    model = auto.from_config(config).eval()
    ids = torch.randint(3, 90, (2, 9))
    sizes: dict[str, tuple[int, ...]] = {"input_values": (2, 1600), "input_features": (2, 8, 256)}
    if (name := model.main_input_name) == "pixel_values":
        edge = config.image_size if isinstance(getattr(config, "image_size", None), int) else 32
        is_video = model_type in ("videomae", "vivit", "timesformer")
        sizes[name] = (2, *[getattr(config, "num_frames", 8)] * is_video, 3, edge, edge)
    inputs = {name: torch.randn(sizes[name]) if name in sizes else ids}
    return model, inputs | ({"decoder_input_ids": ids} if config.is_encoder_decoder else {})


def explain(model_type: str) -> Explanation:
    """What becomes of the sparse MLPs of a small model, in inference."""
    model, inputs = build(model_type)
    blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.5))
    torch._dynamo.reset()
    with torch.no_grad():
        return blast.explain(model, **inputs)


def row(model_type: str, explanation: Explanation) -> str:
    """A line of the table: what the layers became, in how many graphs, and why some are in no fused MLP."""
    became = ", ".join(f"{count} {kind}" for kind, count in sorted(explanation.counts.items()))
    left = Counter((layer.name.rpartition(".")[2], layer.reason) for layer in explanation.layers if layer.reason)
    reasons = "; ".join(f"{count} {name}: {reason}" for (name, reason), count in left.items())
    return f"| {model_type} | {became} | {explanation.num_graphs} | {reasons} |\n"


def table() -> Iterator[str]:
    """The lines of the table."""
    yield "| model type | its sparse layers become | graphs | layers in no fused MLP |\n| --- | --- | --- | --- |\n"
    for model_type in MODELS:
        yield row(model_type, explain(model_type))


def written(text: str, lines: str) -> str:
    """A document with another table in it."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + lines + END + rest.partition(END)[2]


def main() -> None:
    """Writes the table into the document."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    DOCUMENT.write_text(written(DOCUMENT.read_text(), "".join(table())))


if __name__ == "__main__":
    main()
