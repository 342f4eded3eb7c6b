"""The tensors of a model by name, with every module that holds them."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn

from blast_compile.layers.layer import SparseLayer


@dataclass
class Slot:
    """One tensor of a model.

    holders: the modules that hold it, and under which name each. names: its full names, the first one first.
    is_transient: whether it is a non-persistent buffer wherever it is held.
    """

    tensor: Tensor
    holders: list[tuple[nn.Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    is_transient: bool = True

    def put(self, tensor: Tensor) -> None:
        """Makes every holder hold `tensor` instead; a parameter stays one."""
        new = nn.Parameter(tensor, self.tensor.requires_grad) if isinstance(self.tensor, nn.Parameter) else tensor
        for module, name in self.holders:
            (module._parameters if name in module._parameters else module._buffers)[name] = new  # type: ignore[assignment]


def slots_of(model: nn.Module, *, but: set[int]) -> list[Slot]:
    """Every parameter and buffer once, but those with an id in `but` and the non-persistent buffers of sparse layers.

    These serve training alone.
    """
    slots: dict[int, Slot] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            is_transient = name in module._non_persistent_buffers_set
            if tensor is None or id(tensor) in but or (is_transient and isinstance(module, SparseLayer)):
                continue
            slot = slots.setdefault(id(tensor), Slot(tensor))
            slot.names.append(f"{prefix}.{name}" if prefix else name)
            slot.is_transient &= is_transient
            if not any(holder is module and name == held for holder, held in slot.holders):
                slot.holders.append((module, name))
    return list(slots.values())
