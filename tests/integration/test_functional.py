"""`torch.func` over sparse models: functional_call, grad, vjp, jacrev and vmap, eager and compiled; no forward mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacrev, jvp, vjp, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from blast_compile.backend.blast import blast as backend
from blast_compile.base.errors import GradientError
from tests.nets import Net, sparse_net, x_of
from tests.op_cases import FORMS, OPS, Case, Form, OpName, make_call

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

Parameters = dict[str, Tensor]
OPTIONS: dict[str, Any] = {"delegate": "aot_eager", "fallback": "error"}


def halved(model: Net) -> Parameters:
    return {name: parameter.detach() / 2 for name, parameter in model.named_parameters()}


def loss_of(model: Net) -> Callable[[Parameters, Tensor], Tensor]:
    def loss(parameters: Parameters, x: Tensor) -> Tensor:
        y: Tensor = functional_call(model, parameters, (x,))
        return y.square().mean()

    return loss


def expected_gradients(model: Net, parameters: Parameters, x: Tensor) -> Parameters:
    """Those that autograd gives to a model that holds the parameters."""
    leaves = {name: value.clone().requires_grad_() for name, value in parameters.items()}
    gradients = torch.autograd.grad(loss_of(model)(leaves, x), list(leaves.values()))
    return dict(zip(leaves, gradients, strict=True))


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_functional_call_uses_the_parameters_it_is_given(form: str, compiled: bool) -> None:
    model, x = sparse_net(form), x_of(3, 8)
    parameters = halved(model)

    def call(parameters: Parameters, x: Tensor) -> Tensor:
        y: Tensor = functional_call(model, parameters, (x,))
        return y

    run = torch.compile(call, backend=backend, fullgraph=True, options=OPTIONS) if compiled else call
    actual = run(parameters, x)
    model.load_state_dict(parameters, strict=False)
    torch.testing.assert_close(actual, model(x))


@pytest.mark.parametrize("form", ["masked", "packed"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_grad_is_the_gradient(form: str, compiled: bool) -> None:
    model, x = sparse_net(form), x_of(3, 8)
    parameters = halved(model)
    gradient: Any = grad(loss_of(model))
    if compiled:
        gradient = torch.compile(gradient, backend=backend, fullgraph=True, options=OPTIONS)
    torch.testing.assert_close(gradient(parameters, x), expected_gradients(model, parameters, x))


def test_gradients_of_each_sample() -> None:
    model, x = sparse_net(), x_of(5, 2, 8)
    parameters = halved(model)
    actual = vmap(grad(loss_of(model)), in_dims=(None, 0))(parameters, x)
    for sample in range(5):
        one = {name: value[sample] for name, value in actual.items()}
        torch.testing.assert_close(one, expected_gradients(model, parameters, x[sample]))


def test_reverse_mode_and_gradients_of_gradients() -> None:
    model, x = sparse_net().double(), x_of(2, 8).double()

    def run(x: Tensor) -> Tensor:
        y: Tensor = model(x)
        return y

    expected = torch.autograd.functional.jacobian(run, x)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(jacrev(run)(x), expected)
    y, pull, *_ = vjp(run, x)
    torch.testing.assert_close(y, model(x))
    torch.testing.assert_close(pull(torch.ones_like(y))[0], expected.sum((0, 1)))
    second = jacrev(jacrev(lambda x: run(x).sum()))(x)
    expected = torch.autograd.functional.hessian(lambda x: run(x).sum(), x)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(second, expected)


class Calls(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the calls of our ops that arrive below `torch.func`."""

    num_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.num_calls += func.namespace == "blast"
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("op", OPS)
def test_vmap_over_any_tensor_of_an_op(op: OpName, form: Form) -> None:
    """Batched activations are one call; a batch of anything else is a call a sample."""
    call = make_call(Case(op, torch.float32, (4, 4), form, "silu", residual=op != "gated_linear"))
    run, args = getattr(torch.ops.blast, op).nograd, call.args
    tensors = {at: arg for at, arg in enumerate(args) if isinstance(arg, Tensor)}
    rows = {at for at, tensor in tensors.items() if tensor is call.x or tensor is call.residual}
    for batched in [*({at} for at in tensors), rows, set(tensors)]:
        samples = [[_variant(arg, scale) if at in batched else arg for at, arg in enumerate(args)] for scale in (1, 2)]
        mapped = [
            torch.stack(pair, -1) if at in batched else pair[0] for at, pair in enumerate(zip(*samples, strict=True))
        ]
        with Calls() as calls:  # type: ignore[no-untyped-call]
            actual = vmap(run, tuple(-1 if at in batched else None for at in range(len(args))))(*mapped)
        torch.testing.assert_close(actual, torch.stack([run(*sample) for sample in samples]))
        assert calls.num_calls == (1 if batched <= rows else 2)


def _variant(arg: Any, scale: int) -> Any:
    """Other values; of an index, the same, for there is no other that fits."""
    return arg * scale if arg.is_floating_point() else arg


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)  # torch's own, on its first use
def test_forward_mode_is_refused_and_never_wrong() -> None:
    model, x = sparse_net().requires_grad_(False), x_of(2, 8)
    with pytest.raises(GradientError, match=r"got forward mode .* use torch.func.grad"):
        jvp(model, (x,), (x,))
    with pytest.raises(GradientError, match="got forward mode"):
        hessian(lambda x: model(x).sum())(x)
    with pytest.raises(GradientError, match="got forward mode"), torch.autograd.forward_ad.dual_level():
        model(torch.autograd.forward_ad.make_dual(x, x))  # type: ignore[no-untyped-call]
