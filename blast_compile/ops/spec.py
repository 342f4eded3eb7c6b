"""From the layers of a call to the spec of a kernel that serves them, or the reason why none does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from blast_compile.codegen import dtypes
from blast_compile.codegen.family import PRODUCTS
from blast_compile.codegen.spec import Dtype, Epilogue, Op, Spec
from blast_compile.masks.layout import Block
from blast_compile.ops.call import Call, Layer

DTYPES: dict[torch.dtype, Dtype] = {getattr(torch, name): name for name in dtypes.DTYPES}


def make_spec(
    op: Op, x: Tensor, layers: Sequence[Layer], block: Block, epilogues: tuple[Epilogue, ...], target: str
) -> Spec | str:
    """The spec on `target` of layers that fit together (`checks.py`), or why no kernel serves them."""
    first = layers[0].weight
    if x.dtype not in DTYPES or first.dtype not in DTYPES:
        return f"no kernels for {x.dtype}"
    if len({(layer.weight.dtype, layer.weight.dim()) for layer in layers}) > 1:
        return "layers of different dtype or form share no kernel"
    if not all(_is_readable(layer) for layer in layers):
        return "a weight, index or bias has strides that no kernel reads"
    if 0 in (*(layer.N for layer in layers), *(layer.K for layer in layers)):
        return "a layer without inputs or outputs"
    return Spec(
        op=op,
        dtype=DTYPES[x.dtype],
        weight_dtype=DTYPES[first.dtype],
        block=(block[0], block[1]),
        epilogues=epilogues,
        layout="packed" if first.dim() == 3 else "masked",
        target=target,
    )


def epilogues_of(op: Op, call: Call) -> tuple[Epilogue, ...]:
    """Those of a call of a product."""
    biases = [layer.bias is not None for layer in call.layers]
    return PRODUCTS[op].epilogues(call.activation, biases, residual=call.residual is not None)


def _is_readable(layer: Layer) -> bool:
    weight, index, bias = layer.weight, layer.index, layer.bias
    by_rows = weight.is_contiguous() if weight.dim() == 3 else 1 in weight.stride()
    return by_rows and index.is_contiguous() and (bias is None or bias.is_contiguous())
