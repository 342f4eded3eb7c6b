"""Calls the command in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner

from blast_compile.commands.cli import app


def call(*args: str, exit_code: int = 0) -> str:
    """What it prints to standard output, or to both outputs where it fails."""
    result = CliRunner().invoke(app, args)
    assert result.exit_code == exit_code, result.output
    return result.output if exit_code else result.stdout


def call_json(*args: str, exit_code: int = 0) -> Any:
    """What it prints with `--json`, and nothing beside it."""
    result = CliRunner().invoke(app, [*args, "--json"])
    assert result.exit_code == exit_code, result.output
    return json.loads(result.stdout)
