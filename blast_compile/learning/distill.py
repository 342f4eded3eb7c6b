"""Loss terms for training a sparse model beside the dense one it came from.

    teacher_outputs = run_teacher(teacher, input_ids=ids, output_hidden_states=True)
    outputs = student(input_ids=ids, labels=ids, output_hidden_states=True)
    loss = outputs.loss + logits_kl(outputs.logits, teacher_outputs.logits, temperature=2.0)
    loss = loss + hidden_mse(outputs.hidden_states, teacher_outputs.hidden_states)

Every term is a scalar in float32 at least, a mean that does not depend on the size of the batch, and sends gradients to
the student alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blast_compile.base.errors import LayerError, OptionsError
from blast_compile.layers.layer import MaskedLayer, is_transposed
from blast_compile.learning.pruning.regions import evaluating


def run_teacher(teacher: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The outputs of `teacher`, in evaluation mode and without gradients; its modules get their own modes back."""
    with torch.no_grad(), evaluating(teacher):
        return teacher(*args, **kwargs)


def logits_kl(student: Tensor, teacher: Tensor, *, temperature: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """`T^2 KL(softmax(teacher / T) || softmax(student / T))`, a mean over positions.

    Hinton and others 2015 (arXiv 1503.02531): the factor keeps the size of gradients whatever the temperature `T`.
    student, teacher: logits `[..., V]`. mask: `[...]`, the positions that count (an attention mask); None for all.
    Raises `OptionsError` where shapes differ, the temperature is not above 0, or no position counts.
    """
    if not temperature > 0:
        raise OptionsError(f"expected a temperature above 0, got {temperature!r}")
    _check_shapes("logits", student, teacher)
    log_student, log_teacher = (
        F.log_softmax(_wide(logits) / temperature, -1) for logits in (student, teacher.detach())
    )
    divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    return temperature**2 * _mean(divergence, mask)


def hidden_mse(student: Sequence[Tensor], teacher: Sequence[Tensor], *, mask: Tensor | None = None) -> Tensor:
    """The mean squared difference of hidden states `[..., H]`, a mean over the pairs.

    After FitNets (Romero and others 2014, arXiv 1412.6550), with no map between, as both models have the same shape.
    mask: `[...]`, the positions that count. Raises `OptionsError` where the two do not pair up, or no position counts.
    """
    if len(student) != len(teacher) or not student:
        raise OptionsError(
            f"expected as many hidden states of the teacher as of the student, and some, got {len(teacher)} and "
            f"{len(student)}; pass output_hidden_states=True to both models"
        )
    for pair in zip(student, teacher, strict=True):
        _check_shapes("hidden states", *pair)
    terms = [
        _mean((_wide(ours) - _wide(theirs.detach())).square().mean(-1), mask)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()


def pretrained_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the parameters that train, for `weight_pull` later on."""
    return {name: weight.detach().clone() for name, weight in model.named_parameters() if weight.requires_grad}


def weight_pull(model: nn.Module, pretrained: Mapping[str, Tensor]) -> Tensor:
    """NFL-CP: the sum of squared distances of the parameters from their pretrained values.

    Chew and others 2024, "Understanding and Mitigating Spurious Correlations in Text Classification with Neighborhood
    Analysis" (arXiv 2305.13654): constrained parameters. Weights outside the kept blocks of a masked layer do not
    count, as they are not the model's; prune_ and training leave them zero.
    pretrained: by the names of `model.named_parameters()`, as `pretrained_weights` gives them, of all parameters to
    pull or of some. Raises `LayerError` on names or shapes that are not the model's.
    """
    weights, masked = dict(model.named_parameters()), _masked_weights(model)
    terms = []
    for name, start in pretrained.items():
        weight = weights.get(name)
        if weight is None or weight.shape != start.shape:
            what = "no such parameter" if weight is None else f"shape {tuple(weight.shape)}"
            raise LayerError(
                f"expected pretrained weights of this model, got {name!r} of shape {tuple(start.shape)}, and here is "
                f"{what}; take them before pack_, and of the same model"
            )
        change = _wide(weight) - _wide(start.detach())
        if name in masked:
            change = torch.where(masked[name], change, change.new_zeros(()))
        terms.append(change.square().sum())
    if not terms:
        raise LayerError("expected pretrained weights of some parameters, got none")
    return torch.stack(terms).sum()


def output_pull(student: Tensor, teacher: Tensor, *, mask: Tensor | None = None) -> Tensor:
    """NFL-CO: one minus the cosine between the representations of the two models, a mean over positions.

    The source is that of `weight_pull`: constrained outputs. student, teacher: last hidden states `[..., H]`; mask:
    `[...]`, the positions that count. Raises `OptionsError` where shapes differ, or no position counts.
    """
    _check_shapes("representations", student, teacher)
    return _mean(1 - F.cosine_similarity(_wide(student), _wide(teacher.detach()), dim=-1), mask)


def _masked_weights(model: nn.Module) -> dict[str, Tensor]:
    """The masks of masked layers by the names of their weights, bool in the shape of the weight."""
    masks = {}
    for name, layer in model.named_modules():
        if isinstance(layer, MaskedLayer):
            kept_NK = layer.mask.elements()
            masks[f"{name}.weight".removeprefix(".")] = kept_NK.t() if is_transposed(layer) else kept_NK
    return masks


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return values.mean()
    if mask.shape != values.shape:
        raise OptionsError(f"expected a mask with one entry a position, {tuple(values.shape)}, got {tuple(mask.shape)}")
    chosen = values[mask.bool()]
    if not chosen.numel():
        raise OptionsError("expected a mask with at least one position that counts, got none")
    return chosen.mean()


def _check_shapes(what: str, student: Tensor, teacher: Tensor) -> None:
    if student.shape != teacher.shape:
        raise OptionsError(
            f"expected {what} of one shape, got {tuple(student.shape)} of the student and {tuple(teacher.shape)} of "
            "the teacher; run both on the same batch"
        )
