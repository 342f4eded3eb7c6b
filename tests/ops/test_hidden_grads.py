"""Input gradients that go on through the activation of the layer before, as ops; their kernels: tests/gpu."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from blast_compile.base.errors import LayerError
from blast_compile.ops import register
from blast_compile.ops.products import gpu_gradients
from tests.op_cases import Case, Form, make_call, relative_error

FORMS: tuple[Form, ...] = ("masked", "packed")


def arguments_of(form: Form, leading: tuple[int, ...]) -> tuple[list[Any], Tensor]:
    """Gradient, weight and index, two hidden factors, then constants; and the truth before the activation."""
    call = make_call(Case("linear", torch.float64, (4, 4), form))
    layer, generator = call.layers[0], torch.Generator().manual_seed(1)
    N, K = layer.clean.shape
    grad, gate, up = (torch.randn(*leading, size, generator=generator, dtype=torch.float64) for size in (N, K, K))
    return [grad, layer.operand, layer.index, gate, up, K, [4, 4], "silu", register.ABI], grad @ layer.clean


@pytest.mark.parametrize("form", FORMS)
def test_both_ops(form: Form) -> None:
    (grad, weight, index, gate, up, *tail), d_hidden = arguments_of(form, (2, 3))
    up.requires_grad_()
    gate.requires_grad_()
    for hidden, taken, op in (
        (torch.nn.functional.silu(gate), [gate], torch.ops.blast.hidden_grad),
        (torch.nn.functional.silu(gate) * up, [gate, up], torch.ops.blast.gated_hidden_grad),
    ):
        expected = torch.autograd.grad(hidden, taken, d_hidden)
        leaves = [z.detach() for z in taken]
        with torch.no_grad():
            found = op(grad, weight, index, *leaves, *tail)
            torch.library.opcheck(op, (grad, weight, index, *leaves, *tail))
        for ours, truth in zip(found if len(taken) == 2 else [found], expected, strict=True):
            assert relative_error(ours, truth) < 1e-12


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, None, None), (1, 1, None)], ids=str)
def test_batched(in_dims: tuple[int | None, ...]) -> None:
    (grad, weight, index, gate, up, *tail), _ = arguments_of("packed", (3, 3))
    given = [rows if dim is not None else rows[0] for rows, dim in zip((grad, gate, up), in_dims, strict=True)]

    def run(grad: Tensor, gate: Tensor, up: Tensor) -> Any:
        return torch.ops.blast.gated_hidden_grad(grad, weight, index, gate, up, *tail)

    found = torch.func.vmap(run, in_dims)(*given)
    for sample in range(3):
        picked = [rows if dim is None else rows.select(dim, sample) for rows, dim in zip(given, in_dims, strict=True)]
        for ours, truth in zip(found, run(*picked), strict=True):
            torch.testing.assert_close(ours[sample], truth)


def test_the_hidden_layer_of_another_call_is_refused() -> None:
    (grad, weight, index, gate, up, *tail), _ = arguments_of("packed", (3,))
    with pytest.raises(LayerError, match="pass the hidden layer of the same call"):
        gpu_gradients.hidden_grads(grad, weight, index, gate[:2], up, *tail)
