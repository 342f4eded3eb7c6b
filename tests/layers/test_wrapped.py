"""Layers that other libraries have wrapped, hooked or quantised: they work, or stay as they are for a stated reason."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module  # type: ignore[import-untyped]
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

import blast_compile as blast
from blast_compile.base.errors import LayerError
from blast_compile.layers import targets
from tests.models import Mlp, classes, dense_twin, sparse_layer

SPARSE = blast.BlockSparse(block=4, sparsity=0.5)


def with_adapters(model: nn.Module) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(target_modules=["fc1", "fc2"], r=4, init_lora_weights=False)
    return get_peft_model(model, config)


def test_layers_under_adapters_become_sparse_and_adapters_stay(caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    model = with_adapters(Mlp())
    twin, prefix = copy.deepcopy(model), "base_model.model."
    with caplog.at_level(logging.INFO, "blast_compile"):
        blast.sparsify_(model, blast.BlockSparse(block=4, sparsity=0.5, targets="fc"))
    assert {name for name, kind in classes(model).items() if kind == "SparseLinear"} == {
        f"{prefix}{name}.base_layer" for name in ("fc1", "fc2")
    }
    assert caplog.messages == [
        f"{prefix}{name}.{part}.default stays dense: it is part of a small adapter, in Linear of peft.tuners.lora.layer"
        for name in ("fc1", "fc2")
        for part in ("lora_A", "lora_B")
    ]
    masks = {name: sparse_layer(model, name).mask for name, kind in classes(model).items() if kind == "SparseLinear"}
    twin, x = dense_twin(twin, masks), torch.randn(5, 40)
    torch.testing.assert_close(model(x), twin(x))
    blast.pack_(model)
    torch.testing.assert_close(model(x), twin(x))
    for one in (model, twin):
        one(x).square().mean().backward()
    expected = dict(twin.named_parameters())
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
    for name, parameter in trained.items():
        torch.testing.assert_close(parameter.grad, expected[name].grad)


@pytest.mark.parametrize("packed", [False, True], ids=["masked", "packed"])
def test_adapters_go_around_sparse_layers(packed: bool) -> None:
    torch.manual_seed(0)
    dense = Mlp()
    model = blast.sparsify_(copy.deepcopy(dense), SPARSE)
    twin = dense_twin(dense, {name: sparse_layer(model, name).mask for name in ("fc1", "fc2")})
    model = with_adapters(blast.pack_(model) if packed else model)
    x = torch.randn(5, 40)
    with model.disable_adapter():
        torch.testing.assert_close(model(x), twin(x))
    torch.testing.assert_close(model(x), with_adapters(twin)(x))


def test_mlps_are_known_under_their_adapters() -> None:
    model = with_adapters(Mlp())
    found = [name for name, layer in targets.linear_layers(model) if targets.matches("mlp", name, layer)]
    assert found == ["base_model.model.fc1.base_layer", "base_model.model.fc2.base_layer"]


def test_layers_whose_forward_a_library_replaced_stay(caplog: pytest.LogCaptureFixture) -> None:
    model = Mlp()
    add_hook_to_module(model.fc1, ModelHook())  # as accelerate does to offload a layer
    with caplog.at_level(logging.INFO, "blast_compile"):
        blast.sparsify_(model, SPARSE)
    assert classes(model) == {"fc1": "Linear", "fc2": "SparseLinear"}
    assert caplog.messages == ["fc1 stays dense: its forward was replaced by another function"]


class QuantisedTensor(torch.Tensor):
    """A weight that says float and holds something else, as those of torchao do."""

    @staticmethod
    def of(weight: Tensor) -> nn.Parameter:
        tensor = torch.Tensor._make_wrapper_subclass(QuantisedTensor, weight.shape, dtype=weight.dtype)
        return nn.Parameter(tensor, requires_grad=False)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


class QuantisedLinear(nn.Linear):
    """A class of its own, as those of bitsandbytes and transformers are."""


def quantised(how: str) -> Mlp:
    model = Mlp()
    if how == "class":
        model.fc1 = QuantisedLinear(40, 72)
    elif how == "tensor":
        model.fc1.weight = QuantisedTensor.of(model.fc1.weight)
    else:
        dtype = torch.int8 if how == "int8" else torch.float8_e4m3fn
        model.fc1.weight = nn.Parameter(model.fc1.weight.detach().to(dtype), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("class", "its class is .*QuantisedLinear, not a plain linear layer"),
        ("tensor", "its weight is a QuantisedTensor, not a plain parameter"),
        ("int8", "its weight has no floating-point values"),
        ("float8", "its weight is torch.float8_e4m3fn, and the operators take torch.float32, torch.bfloat16"),
    ],
)
@pytest.mark.parametrize("masks", [None, "zeros"])
def test_quantised_layers_stay(how: str, reason: str, masks: Any) -> None:
    model = quantised(how)
    with pytest.raises(LayerError, match=f"'fc1' cannot: {reason}"):
        blast.sparsify_(model, blast.BlockSparse(block=4, targets="fc1"), masks=masks)
    assert set(targets.reasons_to_leave(model)) == {"fc1"}
    blast.sparsify_(model, SPARSE)
    assert classes(model)["fc2"] == "SparseLinear"
    assert "Sparse" not in classes(model)["fc1"]


def test_hooks_of_every_kind_go_on() -> None:
    seen: list[str] = []

    def scale(by: float, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], y: Tensor | None = None) -> Any:
            seen.append(name)
            return by * args[0] if y is None else by * y

        return hook

    def install(model: Mlp) -> Mlp:
        model.fc1.register_forward_pre_hook(scale(2, "before"))
        model.fc1.register_forward_hook(scale(3, "after"))
        model.fc1.register_full_backward_hook(lambda *_: seen.append("backward"))
        return model

    torch.manual_seed(0)
    dense = Mlp()
    model = blast.pack_(blast.sparsify_(install(copy.deepcopy(dense)), SPARSE))
    masks = {name: sparse_layer(model, name).mask for name in ("fc1", "fc2")}
    x = torch.randn(5, 40, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert seen == ["before", "after", "backward"]
    torch.testing.assert_close(y, install(dense_twin(dense, masks))(x))  # type: ignore[arg-type]
