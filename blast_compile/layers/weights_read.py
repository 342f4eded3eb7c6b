"""Weights that the code of a module reads itself, past the forward of the linear layer that holds them.

    time_step = self.dt_proj.weight @ time_step
    attention = F.multi_head_attention_forward(query, key, value, ..., q_proj_weight=self.q_proj.weight)

A mask has no say there. They are found in the source of `forward` and of the methods that it names. Looks at a dtype or
a device do not count, nor does what fills a weight, nor a branch of an `if` that the module's settings switch off.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import textwrap
from collections.abc import Iterator
from functools import cache
from types import CodeType, FunctionType

from torch import nn

_LOOKS = {"isinstance", "hasattr", "getattr", "type", "id"}
_FACTS = {"device", "dtype", "dim", "is_cuda", "is_floating_point", "is_meta", "ndim", "requires_grad", "shape", "size"}


def weights_read(module: nn.Module) -> frozenset[str]:
    """The layers below `module`, by name, whose `weight` its own code computes with."""
    return frozenset(
        name
        for method in _methods_with_weights(type(module))  # type: ignore[arg-type]  # a class is hashable
        for statement in method.body
        for name in _reads(statement, module, method.args.args[0].arg, [])
    )


@cache
def _methods_with_weights(kind: type[nn.Module]) -> tuple[ast.FunctionDef, ...]:
    """The methods of a class that any `weight` is named in, among those that a call of the module may reach."""
    found = []
    for method in _methods(kind):
        if "weight" not in _names(method.__code__):
            continue
        try:
            (definition,) = ast.parse(textwrap.dedent(inspect.getsource(method))).body
        except (OSError, SyntaxError, TypeError, ValueError):  # a function without source, or a lambda
            continue
        if isinstance(definition, ast.FunctionDef) and definition.args.args:
            found.append(definition)
    return tuple(found)


def _methods(kind: type[nn.Module]) -> Iterator[FunctionType]:
    """`forward` and the methods that it names, and so on; those of torch itself left out."""
    pending, seen = ["forward"], {"forward"}
    while pending:
        method = inspect.getattr_static(kind, pending.pop(), None)
        function = inspect.unwrap(getattr(method, "__func__", method))
        if not isinstance(function, FunctionType) or str(function.__module__).startswith("torch."):
            continue
        yield function
        named = set(_names(function.__code__)) - seen
        pending += named
        seen |= named


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _reads(node: ast.AST, module: nn.Module, me: str, around: list[ast.AST]) -> Iterator[str]:
    """`me`: what the method calls its module. `around`: the nodes that hold this one, from the outside in."""
    if isinstance(node, ast.Attribute):
        path = ast.unparse(node).split(".")
        if path[0] == me and path[-1] == "weight" and len(path) > 2 and _is_computed_with(node, around):
            yield ".".join(path[1:-1])
    skipped = None
    if isinstance(node, ast.If | ast.IfExp):
        skipped = {True: "orelse", False: "body", None: None}[_settled(node.test, module, me)]
    for name, field in ast.iter_fields(node):
        for inner in field if isinstance(field, list) else [field]:
            if isinstance(inner, ast.AST) and name != skipped:
                yield from _reads(inner, module, me, [*around, node])


def _is_computed_with(weight: ast.Attribute, around: list[ast.AST]) -> bool:
    """Whether a weight goes into a product, a call, or another name; not into `is`, a look, or what fills it."""
    if not isinstance(weight.ctx, ast.Load):
        return False
    *outer, parent = around
    while isinstance(parent, ast.Attribute) and parent.attr == "data":
        *outer, parent = outer
    if isinstance(parent, ast.Attribute):
        return parent.attr not in _FACTS and not parent.attr.endswith("_")
    if isinstance(parent, ast.keyword):
        parent = outer[-1]
    if isinstance(parent, ast.Call):
        called = ast.unparse(parent.func)
        return called not in _LOOKS and not called.endswith("_")
    return not isinstance(parent, ast.Compare | ast.Expr | ast.Return)


def _settled(test: ast.expr, module: nn.Module, me: str) -> bool | None:
    """What a test of the module's settings gives; None where it asks for arguments, other code, or `training`."""
    nodes = list(ast.walk(test))
    names = {node.id for node in nodes if isinstance(node, ast.Name)} - {me}
    called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
    modes = [node for node in nodes if isinstance(node, ast.Attribute) and node.attr == "training"]
    if modes or not names <= vars(builtins).keys() or not called <= _LOOKS:
        return None
    try:
        return bool(eval(ast.unparse(test), {me: module}))  # noqa: S307 - code of the model that runs at its next call
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return None
