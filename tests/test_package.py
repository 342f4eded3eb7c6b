"""The package as a whole: what is public, what is listed in pyproject.toml, how large files may be."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

import blast_compile

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_public_surface_is_small_and_whole() -> None:
    names = blast_compile.__all__
    assert len(names) <= 12
    assert names == sorted(names)
    assert dir(blast_compile) == names
    for name in names:
        assert getattr(blast_compile, name) is not None
    assert len((ROOT / "blast_compile" / "__init__.py").read_text().splitlines()) <= 60


def test_unknown_name_lists_the_public_ones() -> None:
    name = "prune"
    with pytest.raises(AttributeError, match="no attribute 'prune'; it has BlockMask, BlockSparse"):
        getattr(blast_compile, name)


def test_import_is_cheap() -> None:
    code = "import sys, blast_compile; print(sorted({'torch', 'triton', 'numpy', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_listed_packages_are_the_folders() -> None:
    mapping = PROJECT["tool"]["setuptools"]["package-dir"]
    found = {"blast_compile"}
    for package in ("blast_compile", "blast_compile.codegen", "blast_compile.passes"):
        base = ROOT / mapping[package]
        for init in base.rglob("__init__.py"):
            parts = init.parent.relative_to(base).parts
            found.add(".".join((package, *parts)))
    assert sorted(found) == PROJECT["tool"]["setuptools"]["packages"]


@pytest.mark.parametrize("name", ["codegen", "passes"])
def test_links_lead_to_the_folders_at_the_top(name: str) -> None:
    assert (ROOT / "blast_compile" / name).readlink() == Path("..") / name
    assert PROJECT["tool"]["setuptools"]["package-dir"][f"blast_compile.{name}"] == name


def test_every_requirement_is_pinned() -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = dict(line.split("==") for line in lines)
    names = {re.split(r"[<>=]", requirement)[0] for requirement in wanted}
    assert {re.sub("[-_.]+", "-", name).lower() for name in names} <= {
        re.sub("[-_.]+", "-", name).lower() for name in pins
    }
    assert (pins["torch"], pins["triton"]) == ("2.13.0", "3.7.1")


def test_version_is_that_of_the_project() -> None:
    assert blast_compile.__version__ == metadata.version("blast-compile")


def test_files_stay_short() -> None:
    folders = ("blast_compile", "codegen", "passes", "tests", "benchmarks")
    paths = {
        path.resolve() for folder in folders for path in (ROOT / folder).rglob("*.py") if "golden" not in path.parts
    }
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in paths}
    assert {name: length for name, length in lengths.items() if length > 300} == {}
