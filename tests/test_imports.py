"""Imports only point upwards in one order of modules, and never use the bare names `codegen` and `passes`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = (
    ("version", "errors", "env", "inputs", "log", "options", "pages"),
    ("compat",),
    ("mask", "layout", "old_states"),
    ("activations",),
    ("reference",),
    ("activation_grads",),
    ("codegen",),
    ("store", "shelf", "manifest", "folders", "inventory", "state_file", "tensor_files"),
    ("bundles",),
    ("objects",),
    (
        "kernel",
        "kernels",
        "threads",
        "native",
        "calls",
        "specs",
        "checks",
        "plans",
        "running",
        "launch",
        "hidden_grads",
        "gpu",
        "tuning",
    ),
    ("ops", "gradients", "layer_grads", "transforms", "flops"),
    ("layers", "states", "probe", "sizes", "twins", "forms", "integrations"),
    ("surgery", "select", "held_outside", "adopt", "bypass", "dead_blocks", "wrappers"),
    ("passes",),
    ("prepare", "serve"),
    ("backend", "exported"),
    ("report", "tuner"),
    ("packing", "mlps"),
    ("sparsify",),
    ("checkpoint",),
    ("aot",),
    ("forecast",),
    ("demo", "doctor", "commands", "cli"),
)
RANKS = {part: rank for rank, parts in enumerate(ORDER) for part in parts}


def source_files() -> dict[str, Path]:
    """Module name to file, for everything that is installed."""
    folders = {"blast_compile": ROOT / "blast_compile"}
    folders |= {f"blast_compile.{name}": ROOT / name for name in ("codegen", "passes")}
    modules = {}
    for package, folder in folders.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "blast_compile" and parts[0] in {"codegen", "passes"}:
                continue  # reached through the links, which older versions of Python follow
            modules[".".join((package, *parts)).removesuffix(".__init__")] = path
    return modules


MODULES = source_files()


def imported(module: str, nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Names of the imported modules, absolute; of `from a import b`, `a.b` where that is a module of ours."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            outer = package.rsplit(".", node.level - 1)[0] if node.level else ""
            base = ".".join(part for part in (outer, node.module) if part)
            for alias in node.names:
                yield f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base


def part(module: str) -> str:
    return module.split(".")[1]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"blast_compile"}))
def test_imports_point_upwards(module: str) -> None:
    assert part(module) in RANKS, f"give {part(module)} its place in ORDER"
    for name in imported(module, ast.walk(ast.parse(MODULES[module].read_text()))):
        if name.startswith("blast_compile."):
            assert RANKS[part(name)] <= RANKS[part(module)], f"{module} imports {name}, which stands above it"


def test_imports_at_module_level_have_no_cycle() -> None:
    bodies = {module: iter(ast.parse(path.read_text()).body) for module, path in MODULES.items()}
    graph = {module: set(imported(module, body)) & set(MODULES) - {module} for module, body in bodies.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)


@pytest.mark.parametrize("folder", ["blast_compile", "codegen", "passes", "tests", "benchmarks"])
def test_bare_names_are_never_imported(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names.append(node.module or "")
            assert not {name.split(".")[0] for name in names} & {"codegen", "passes"}, path


def test_relative_imports_stay_inside_their_folder() -> None:
    for module, path in MODULES.items():
        levels = [node.level for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        assert max(levels, default=0) <= 1, f"{module}: use an absolute import across folders"
