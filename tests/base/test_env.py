"""Settings are read when asked, bad ones are rejected with the list of good ones, and the docs agree."""

from __future__ import annotations

import ast
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from blast_compile.base import env
from blast_compile.base.errors import OptionsError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a folder with the named programs the whole PATH, and unsets CXX and BLAST_CXX."""
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("BLAST_CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))

    def install(*names: str) -> Path:
        for name in names:
            (tmp_path / name).touch()
            (tmp_path / name).chmod(stat.S_IRWXU)
        return tmp_path

    return install


def test_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLAST_CACHE_DIR")
    assert (env.cache_dir(), env.debug_level(), env.isa()) == (None, 0, None)


def test_empty_value_counts_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in env.VARIABLES:
        monkeypatch.setenv(variable.name, "")
    assert (env.cache_dir(), env.debug_level(), env.isa()) == (None, 0, None)


def test_values_are_read_at_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    for level in (0, 4, 1):
        monkeypatch.setenv("BLAST_DEBUG", str(level))
        assert env.debug_level() == level
    for isa in env.ISAS:
        monkeypatch.setenv("BLAST_ISA", isa)
        assert env.isa() == isa


def test_cache_dir_is_absolute_and_expands_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("BLAST_CACHE_DIR", "~/kernels")
    assert env.cache_dir() == tmp_path / "kernels"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLAST_CACHE_DIR", "kernels")
    assert env.cache_dir() == tmp_path / "kernels"


@pytest.mark.parametrize(
    ("name", "value", "read", "good"),
    [
        ("BLAST_DEBUG", "5", env.debug_level, "0, 1, 2, 3, 4"),
        ("BLAST_DEBUG", "loud", env.debug_level, "0, 1, 2, 3, 4"),
        ("BLAST_ISA", "AVX2", env.isa, "portable, avx2, avx512, avx512_bf16"),
    ],
)
def test_bad_value_lists_the_good_ones(
    name: str, value: str, read: Callable[[], object], good: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(OptionsError, match=f"expected {name} to be one of {good}, got '{value}'"):
        read()


def test_compiler_is_the_first_found(compilers: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert env.cxx() is None
    folder = compilers("clang++")
    assert env.cxx() == str(folder / "clang++")
    compilers("g++")
    assert env.cxx() == str(folder / "g++")
    compilers("icpx")
    compilers("gcc")
    monkeypatch.setenv("CXX", "gcc")
    assert env.cxx() == str(folder / "g++"), "gcc links no C++ library"
    monkeypatch.setenv("CXX", "icpx")
    assert env.cxx() == str(folder / "icpx")
    monkeypatch.setenv("BLAST_CXX", "clang++")
    assert env.cxx() == str(folder / "clang++")


def test_missing_cxx_is_passed_over_and_missing_blast_cxx_is_an_error(
    compilers: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = compilers("g++")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert env.cxx() == str(folder / "g++")
    monkeypatch.setenv("BLAST_CXX", "no-such-compiler")
    with pytest.raises(OptionsError, match=r"expected BLAST_CXX to be a C\+\+ compiler .* got 'no-such-compiler'"):
        env.cxx()


def test_documented_table_equals_the_module() -> None:
    lines = (ROOT / "docs" / "environment.md").read_text().splitlines()
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines if line.startswith("| `")]
    assert rows == [(f"`{v.name}`", v.values, v.default, v.meaning) for v in env.VARIABLES]


def test_only_env_reads_blast_variables() -> None:
    """No other module holds a string that names one, except inside docstrings and messages."""
    documented = {variable.name for variable in env.VARIABLES}
    for path in (*ROOT.glob("blast_compile/**/*.py"), *ROOT.glob("codegen/**/*.py"), *ROOT.glob("passes/**/*.py")):
        strings = {n.value for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Constant)}
        named = {text for text in strings if isinstance(text, str) and re.fullmatch(r"BLAST_[A-Z_]+", text)}
        assert named == (documented if path == ROOT / "blast_compile" / "base" / "env.py" else set()), path
