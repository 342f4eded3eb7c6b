"""What stands for the text of a kernel in the store: all that the text is made from, and nothing is generated."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

from blast_compile.codegen import fingerprint
from blast_compile.kernels import shared_objects

FOLDER = Path(fingerprint.__file__).resolve().parent


def imported(path: Path) -> set[str]:
    """Modules that a file of the generators imports, those for type checkers alone too."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_a_kernel_of_the_cpu_is_made_from_what_its_key_says() -> None:
    """From files of `codegen/`, whose contents count, and libraries, whose versions do."""
    waiting, seen, others = [FOLDER / "cpp" / "generate.py"], set[Path](), set[str]()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imported(path):
            if name.startswith("blast_compile.codegen"):
                inside = name.split(".")[2:]
                files = [FOLDER.joinpath(*inside[:depth]).with_suffix(".py") for depth in (1, 2)]
                waiting += [file for file in files if file.exists() and file not in seen]
            else:
                others.add(".".join(name.split(".")[: 3 if name.startswith("blast_compile") else 1]))
    assert {path.name for path in seen} >= {
        "generate.py",
        "config.py",
        "isas.py",
        "epilogue.py",
        "activations.py",
        "spec.py",
    }
    layout_for_types_alone, errors = "blast_compile.masks.layout", "blast_compile.base.errors"
    assert others - set(sys.stdlib_module_names) <= {"jinja2", "sympy", layout_for_types_alone, errors}
    assert {name for name, _ in shared_objects._libraries()} == {"jinja2", "sympy"}


def test_templates_count_too() -> None:
    suffixes = {path.suffix for path in (FOLDER / "templates" / "cpp").rglob("*") if path.is_file()}
    assert suffixes <= fingerprint._SUFFIXES
