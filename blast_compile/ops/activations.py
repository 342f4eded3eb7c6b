"""Activations that torch has no function for, and the operators by which graphs name them.

The operators are composite: a tracer sees through them, so they need no gradients and no fake versions. Those of torch
are as good, but an activation that is one call is one node, in the graphs of Dynamo and of `torch.export` alike.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library


def quick_gelu(x: Tensor) -> Tensor:
    """`x * sigmoid(1.702 * x)`, of CLIP; Hendrycks and Gimpel, "Gaussian Error Linear Units", section 2."""
    return x * torch.sigmoid(1.702 * x)


def relu_squared(x: Tensor) -> Tensor:
    """`relu(x)**2`; So et al., "Primer", section 3.2."""
    return torch.square(torch.relu(x))


_lib = Library("blast", "FRAGMENT")  # type: ignore[no-untyped-call]
for _function in (quick_gelu, relu_squared):
    _lib.define(f"{_function.__name__}(Tensor x) -> Tensor")  # type: ignore[no-untyped-call]
    _lib.impl(_function.__name__, _function, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]
