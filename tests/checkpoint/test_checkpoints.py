"""Checkpoints and casts of sparse layers: forms that do not fit are named, indices stay what they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers import T5Config, T5EncoderModel

import blast_compile as blast
from blast_compile.masks import layout
from tests.families import FAMILIES, sparse
from tests.models import Mlp, sparse_layer

SPARSE = blast.BlockSparse(block=4, sparsity=0.5)


def sparse_mlp(*, packed: bool) -> nn.Module:
    model = blast.sparsify_(Mlp(), SPARSE)
    return blast.pack_(model) if packed else model


@pytest.mark.parametrize("packed", [True, False])
def test_a_checkpoint_of_the_other_form_is_named(packed: bool) -> None:
    model, other = sparse_mlp(packed=packed), sparse_mlp(packed=not packed)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "bias" not in name}
    expected = {
        True: r"expected a packed fc1.weight of 3 dimensions for PackedLinear\(.*got one of shape \(72, 40\); "
        "load it before pack_, or save it after pack_",
        False: r"expected a masked fc1.weight of 2 dimensions for SparseLinear\(.*got one of shape \(\d+, 4, 4\); "
        "call pack_ on the model before loading it, or save it after unpack_",
    }
    with pytest.raises(RuntimeError, match=expected[packed]) as caught:
        model.load_state_dict(other.state_dict())
    assert "fc2.weight" in str(caught.value), "every layer is named"
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_dense_checkpoint_loads_before_packing_only() -> None:
    with pytest.raises(RuntimeError, match=r"got one of shape \(72, 40\); load it before pack_\n"):
        sparse_mlp(packed=True).load_state_dict(Mlp().state_dict())


def test_kept_blocks_alone_load_into_a_packed_model() -> None:
    config = blast.BlockSparse(block=4, sparsity=0.3)
    model, other = (blast.pack_(blast.sparsify_(Mlp(), config)) for _ in range(2))
    layer, state = sparse_layer(model, "fc1"), dict(model.state_dict())
    state["fc1.weight"], state["fc1.block_index"] = layout.strip(layer.weight, layer.index_operand(), 18)
    other.load_state_dict(state)
    assert state["fc1.weight"].shape[0] < sparse_layer(other, "fc1").weight.shape[0]
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in other.state_dict().items())


@pytest.mark.parametrize("packed", [True, False])
def test_casts_of_every_kind_leave_the_index_alone(packed: bool) -> None:
    model = sparse_mlp(packed=packed)
    index = sparse_layer(model, "fc1").index_operand().clone()
    casts: list[tuple[Callable[[], nn.Module], torch.dtype]] = [
        (lambda: model.type(torch.float16), torch.float16),  # casts buffers of integers too
        (lambda: model.type(torch.float64), torch.float64),
        (lambda: model.to(torch.bfloat16), torch.bfloat16),
        (model.half, torch.float16),
        (model.float, torch.float32),
    ]
    for cast, dtype in casts:
        assert cast() is model
        layer = sparse_layer(model, "fc1")
        assert layer.weight.dtype == dtype
        assert torch.equal(layer.index_operand(), index)
        assert layer.index_operand().dtype == (torch.int32 if packed else torch.float32)
        assert {buffer.dtype for buffer in layer.buffers()} == {index.dtype}
    assert model(torch.randn(3, 40)).shape == (3, 40)


def test_the_index_follows_to_another_device() -> None:
    layer = sparse_layer(sparse_mlp(packed=True).to("meta"), "fc1")
    assert layer.index_operand().device.type == layer.weight.device.type == "meta"


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_models_know_their_dtype(form: str) -> None:
    model = sparse(FAMILIES["llama"], form).to(torch.bfloat16)
    assert model.dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_code_that_reads_the_dtype_of_a_weight(form: str) -> None:
    """T5 casts the hidden state to the dtype of `wo.weight`, which it keeps in float32 beside 16-bit layers."""
    config = T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=16, dropout_rate=0.0)
    dense: nn.Module = T5EncoderModel(config)
    model = blast.sparsify_(dense.eval(), SPARSE)
    model = blast.pack_(model) if form == "packed" else model
    tokens = torch.arange(12).view(2, 6)
    expected = model(tokens)[0]
    model.to(torch.bfloat16).get_submodule("encoder.block.0.layer.1.DenseReluDense.wo").float()
    actual = model(tokens)[0]
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), expected, rtol=0.05, atol=0.05)  # 16 bits all along


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_packed_model_takes_its_kept_share_of_memory(dtype: torch.dtype) -> None:
    """At blocks of 32, index and spare blocks included, over layers that keep unlike numbers of blocks."""
    torch.manual_seed(0)
    family = FAMILIES["llama"]
    settings = {**family.settings, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}
    model = type(family)(family.model, family.config, settings, family.kind).build().to(dtype)
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".mlp." in n}
    masks, kept_bytes = {}, 0.0
    for number, (name, linear) in enumerate(linears.items()):
        weight = linear.weight.detach()
        masks[name] = blast.BlockMask.from_weight(weight, 0.88 + 0.01 * number, (32, 32))
        kept_bytes += masks[name].nnz / masks[name].kept.numel() * weight.nbytes
    blast.pack_(blast.sparsify_(model, masks=masks))
    stored = sum(t.nbytes for name in linears for t in sparse_layer(model, name).state_dict().values())
    assert stored <= 1.05 * kept_bytes
