"""Every private API of torch and Triton that we touch, behind one door, with the versions it was checked on.

"Run" names the torch version a function was executed on, "read" those whose source was compared.
"""

from __future__ import annotations

from blast_compile.base.compat.compilers import (
    can_inductor_compile_for_cpu,
    compile_with,
    frozen_weights,
    outside_dynamo,
)
from blast_compile.base.compat.dispatch import (
    any_has_tangent,
    any_requires_grad,
    one_level_function,
    redispatch_below_autograd,
    without_autocast,
)
from blast_compile.base.compat.graphs import (
    copy_graph_module,
    expression,
    is_static_input,
    known_equal,
    size_hint,
    static_size,
    storage_of,
    with_hints,
)
from blast_compile.base.compat.imports import when_imported
from blast_compile.base.compat.machine import cpu_isa, has_triton, runnable_isas
from blast_compile.base.compat.sources import compiled_function, fixed_inputs, is_told, let_first_size_vary
from blast_compile.base.compat.tensors import (
    has_plain_values,
    has_rows_in_values,
    is_fake,
    is_traced_by_fx,
    is_whole_memory,
    map_values,
    shares_memory,
)

__all__ = [
    "any_has_tangent",
    "any_requires_grad",
    "can_inductor_compile_for_cpu",
    "compile_with",
    "compiled_function",
    "copy_graph_module",
    "cpu_isa",
    "expression",
    "fixed_inputs",
    "frozen_weights",
    "has_plain_values",
    "has_rows_in_values",
    "has_triton",
    "is_fake",
    "is_static_input",
    "is_told",
    "is_traced_by_fx",
    "is_whole_memory",
    "known_equal",
    "let_first_size_vary",
    "map_values",
    "one_level_function",
    "outside_dynamo",
    "redispatch_below_autograd",
    "runnable_isas",
    "shares_memory",
    "size_hint",
    "static_size",
    "storage_of",
    "when_imported",
    "with_hints",
    "without_autocast",
]
