"""Runs an op: finds the kernel for a call, or the reference where no kernel serves it."""

from __future__ import annotations

from blast_compile.reference import gated_linear, gated_mlp, input_grad, linear, mlp, weight_grad

__all__ = ["gated_linear", "gated_mlp", "input_grad", "linear", "mlp", "weight_grad"]
