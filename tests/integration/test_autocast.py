"""Autocast over whole models: activations are cast, float32 weights are read as they are, float64 is left alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from blast_compile.layers.layer import SparseLayer
from blast_compile.masks import layout
from tests.nets import Net, compiled, sparse_net, x_of

pytestmark = pytest.mark.usefixtures("fresh_dynamo")


def dense_of(model: Net, dtype: torch.dtype) -> Net:
    """The dense model that a sparse one stands for, masks multiplied into its weights."""
    dense = Net()
    for name, layer in model.named_modules():
        if isinstance(layer, SparseLayer):
            twin: Any = dense.get_submodule(name)
            twin.weight.data = dense_values(layer, layer.weight)
            twin.bias.data = layer.bias.detach().clone() if layer.bias is not None else None
    return dense.to(dtype)


def dense_values(layer: SparseLayer, values: Tensor) -> Tensor:
    """Values in the form of the layer's weight as `[N, K]`, zeros where no block is kept."""
    if values.dim() == 3:
        return layout.unpack(values.detach(), layer.index_operand(), layer.shape, layer.block)
    return values.detach() * layer.mask.elements()


def error_of(tensors: list[Tensor], truths: list[Tensor]) -> float:
    """That of all tensors together, in the 2-norm: single values are a matter of luck in 16 bits."""
    truth = torch.cat([tensor.detach().flatten() for tensor in truths])
    errors = torch.cat([tensor.detach().double().flatten() for tensor in tensors]) - truth
    return float(errors.norm() / truth.norm())


def gradients_of(model: Net, layers: dict[str, SparseLayer]) -> list[Tensor]:
    """Of weights, as `[N, K]` on the kept blocks, and of biases."""
    gradients = []
    for name, layer in layers.items():
        twin: Any = model.get_submodule(name)
        gradients += [dense_values(layer, twin.weight.grad), twin.bias.grad]
    return gradients


@pytest.mark.parametrize("is_compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_under_autocast(dtype: torch.dtype, form: str, is_compiled: bool) -> None:
    """Trained and not: outputs and gradients are as near to float64 as those of the dense model under autocast."""
    model, x = sparse_net(form), x_of(16, 8)
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SparseLayer)}
    truth, dense = dense_of(model, torch.float64), dense_of(model, torch.float32)
    run = compiled(model, fallback="error") if is_compiled else model
    expected = truth(x.double())
    with torch.autocast("cpu", dtype):
        with torch.no_grad():
            inferred = run(x)
        trained, rounded = run(x), dense(x)
    assert inferred.dtype == trained.dtype == torch.float32  # that of the residual stream
    for y in (inferred, trained):
        assert error_of([y], [expected]) <= 1.5 * error_of([rounded], [expected])
    for y in (trained, rounded, expected):
        torch.autograd.backward(y.square().mean())
    assert all(parameter.grad is not None and parameter.grad.dtype == torch.float32 for parameter in model.parameters())
    actual, exact, theirs = (gradients_of(net, layers) for net in (model, truth, dense))
    assert error_of(actual, exact) <= 1.5 * error_of(theirs, exact)


class Dtypes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the dtypes of the input and of the weight with which our ops are called, below autocast."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: set[tuple[torch.dtype, torch.dtype]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "blast":
            self.seen.add((args[0].dtype, args[1].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_the_input_alone_is_cast(form: str) -> None:
    model, dtypes = sparse_net(form), Dtypes()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), dtypes:
        model(x_of(3, 8))
    assert dtypes.seen == {(torch.bfloat16, torch.float32)}


@pytest.mark.parametrize("form", ["masked", "packed"])
def test_float64_stays_float64(form: str) -> None:
    model, x = sparse_net(form).double(), x_of(3, 8).double()
    expected = dense_of(model, torch.float64)(x)
    with torch.no_grad():
        for run in (model, compiled(model, fallback="error")):
            torch.testing.assert_close(run(x), expected)
            with torch.autocast("cpu", torch.bfloat16):
                torch.testing.assert_close(run(x), expected)
