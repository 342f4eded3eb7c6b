"""Tensor descriptors for kernels that load through them: TMA on sm_90 and above, plain addresses elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from blast_compile.codegen.triton import descriptor_tile, walk
from blast_compile.codegen.triton_build import TritonKernel, import_triton
from blast_compile.errors import TargetError


def descriptors(kernel: TritonKernel, x_MK: Tensor, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Arguments of a product: descriptors of x and of each weight by its prefix, and which axis of weights is adjacent.

    Raises `TargetError` where strides allow none.
    """
    import_triton()
    from triton.tools.tensor_descriptor import TensorDescriptor

    is_masked = walk(kernel.spec) == "masked"
    is_adjacent = is_masked and all(weight.stride(0) == 1 for weight in weights.values())
    tensors = {"x_desc": x_MK}
    for prefix, weight in weights.items():
        matrix = weight if is_masked else weight.flatten(0, 1)
        tensors[f"{prefix}weight_desc"] = matrix.t() if is_adjacent else matrix
    arguments: dict[str, object] = {"OUTPUTS_ADJACENT": is_adjacent}
    for name, tensor in tensors.items():
        if tensor.stride(1) != 1 or tensor.stride(0) * tensor.itemsize % 16 or tensor.data_ptr() % 16:
            raise TargetError(
                f"expected rows that start at multiples of 16 bytes for {name}, got strides {tensor.stride()} of "
                f"{tensor.dtype}; use a config without descriptors"
            )
        # A descriptor covers a row at least; of no tokens or no blocks, none is read.
        covered = tensor if len(tensor) else tensor.new_empty(1, tensor.shape[1])
        tile = descriptor_tile(kernel.spec, kernel.config, name, is_adjacent)
        arguments[name] = TensorDescriptor.from_tensor(covered, list(tile))
    return arguments
