"""The size of the house: files and lines of code of each room, without blank lines, comments and docstrings.

python -m tests.house            of this checkout
python -m tests.house FOLDER     of another one
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_LAYOUT = (tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT, tokenize.ENDMARKER)


def code_lines(text: str) -> int:
    """Lines of a Python file that hold code."""
    held: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            held.update(range(token.start[0], token.end[0] + 1))
    return len(held - set(_docstring_lines(ast.parse(text))))


def _docstring_lines(tree: ast.AST) -> list[int]:
    """Lines of texts that stand as statements: docstrings, and those behind constants."""
    texts = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return [line for node in texts for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)]


def rooms(root: Path) -> dict[str, tuple[int, int]]:
    """Files and lines of code of every room; what lies loose in the package counts as one."""
    files, lines = Counter[str](), Counter[str]()
    for folder in ("blast_compile", "codegen", "passes"):
        for path in (root / folder).rglob("*.py"):
            parts = path.relative_to(root).parts
            if (root / Path(*parts[:2])).is_symlink():
                continue
            room = folder if folder != "blast_compile" else parts[1] if len(parts) > 2 else "(loose)"
            files[room] += path.name != "__init__.py"
            lines[room] += code_lines(path.read_text())
    return {room: (files[room], lines[room]) for room in sorted(lines)}


def main() -> None:
    """Prints the table."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1]
    found = rooms(root)
    for room, (num_files, num_lines) in found.items():
        print(f"{room:12} {num_files:4} files {num_lines:6} lines")
    sums = [sum(each) for each in zip(*found.values(), strict=True)]
    print(f"{'all':12} {sums[0]:4} files {sums[1]:6} lines")


if __name__ == "__main__":
    main()
