"""Tensor descriptors for kernels that load through them: TMA on sm_90 and above, plain addresses elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from blast_compile.base.errors import TargetError
from blast_compile.codegen.triton.build import TritonKernel, import_triton
from blast_compile.codegen.triton.generate import descriptor_tile, walk


def descriptors(kernel: TritonKernel, x_MK: Tensor, weights: Mapping[str, Tensor]) -> dict[str, object]:
    """Arguments of a product: descriptors of x and of each weight by its prefix, and which axis of weights is adjacent.

    Raises `TargetError` where strides allow none.
    """
    import_triton()
    from triton.tools.tensor_descriptor import TensorDescriptor

    tensors, is_adjacent = _matrices(kernel, x_MK, weights)
    arguments: dict[str, object] = {"OUTPUTS_ADJACENT": is_adjacent}
    for name, tensor in tensors.items():
        if not _is_aligned(tensor):
            raise TargetError(
                f"expected rows that start at multiples of 16 bytes for {name}, got strides {tensor.stride()} of "
                f"{tensor.dtype}; use a config without descriptors"
            )
        # A descriptor covers a row at least; of no tokens or no blocks, none is read.
        covered = tensor if len(tensor) else tensor.new_empty(1, tensor.shape[1])
        tile = descriptor_tile(kernel.spec, kernel.config, name, is_adjacent)
        arguments[name] = TensorDescriptor.from_tensor(covered, list(tile))
    return arguments


def allow_descriptors(kernel: TritonKernel, x_MK: Tensor, weights: Mapping[str, Tensor]) -> bool:
    """Whether strides and addresses allow descriptors of all of them."""
    return all(map(_is_aligned, _matrices(kernel, x_MK, weights)[0].values()))


def _matrices(kernel: TritonKernel, x_MK: Tensor, weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """What descriptors cover, by the names of arguments, and whether the outputs of masked weights are adjacent."""
    is_masked = walk(kernel.spec) == "masked"
    is_adjacent = is_masked and all(weight.stride(0) == 1 for weight in weights.values())
    tensors = {"x_desc": x_MK}
    for prefix, weight in weights.items():
        matrix = weight if is_masked else weight.flatten(0, 1)
        tensors[f"{prefix}weight_desc"] = matrix.t() if is_adjacent else matrix
    return tensors, is_adjacent


def _is_aligned(tensor: Tensor) -> bool:
    """Whether rows are contiguous and start at multiples of 16 bytes."""
    return tensor.stride(1) == 1 and tensor.stride(0) * tensor.itemsize % 16 == 0 and tensor.data_ptr() % 16 == 0
