"""Imports go one way, along one line of rooms, and never use the bare names `codegen` and `passes`."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINE = (
    "base < masks < codegen < kernels < ops < passes < tuning < backend < layers < learning, checkpoint < report, aot "
    "< commands"
)
"""A file imports from its own room and from rooms to its left; rooms between two signs know nothing of each other."""
RANKS = {room: rank for rank, rooms in enumerate(LINE.split(" < ")) for room in rooms.split(", ")}


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


def imported(module: str, nodes: Iterable[ast.AST]) -> Iterator[str]:
    """The modules of ours that are imported, and `blast_compile.ops` where its operators are named."""
    nodes = list(nodes)
    private = [node.value for node in nodes if isinstance(node, ast.Attribute) and node.attr.startswith("_")]
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: use an absolute import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else str(node.module) for name in names]
        if isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.ops.blast" and node not in private:
            names = ["blast_compile.ops"]
        yield from (name for name in names if name.split(".")[0] == "blast_compile")


def room(module: str) -> str:
    return module.split(".")[1]


def runs_backwards(module: str, name: str) -> bool:
    """Whether a module of a room may not import another one; nobody inside imports the face."""
    if name == "blast_compile":
        return True
    ranks = RANKS[room(module)], RANKS[room(name)]
    return ranks[1] > ranks[0] or (ranks[1] == ranks[0] and room(module) != room(name))


def test_every_room_stands_on_the_line() -> None:
    assert {room(module) for module in MODULES if module != "blast_compile"} == RANKS.keys()


def test_no_import_runs_backwards() -> None:
    """Those inside functions and of type checkers count too."""
    found = [
        f"{module} imports {name}"
        for module in sorted(MODULES.keys() - {"blast_compile"})
        for name in imported(module, ast.walk(ast.parse(MODULES[module].read_text())))
        if runs_backwards(module, name)
    ]
    assert found == []


def test_what_runs_backwards_is_seen() -> None:
    text = "def f():\n    from blast_compile.layers import layer\n    return torch.ops.blast.linear"
    found = [*imported("blast_compile.masks.mask", ast.walk(ast.parse(text)))]
    assert sorted(found) == ["blast_compile.layers.layer", "blast_compile.ops"]
    assert all(runs_backwards("blast_compile.masks.mask", name) for name in found)
    assert runs_backwards("blast_compile.aot.builder", "blast_compile.report.doctor")
    assert not runs_backwards("blast_compile.layers.pack", "blast_compile.backend.capture")


def test_imports_at_module_level_have_no_cycle() -> None:
    bodies = {module: ast.parse(path.read_text()).body for module, path in MODULES.items()}
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
