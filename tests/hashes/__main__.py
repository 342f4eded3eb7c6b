"""Computes the results and gradients of every op and of a dozen models, and compares their bits with `hashes.json`.

    python -m tests.hashes                compares; says what differs, and exits with 1
    python -m tests.hashes --only mlp     the same for names that hold a word
    python -m tests.hashes --write        writes what is found into tests/hashes.json

It shows that a change of the code changes no result: on one machine, for bits are others on another CPU, with another
torch or another compiler; there it says so and compares nothing. Each instruction set that runs here has a process of
its own, with one thread. They share a store in which no tuned plans are, and kernels stay there for the next time. The
caches of torch, which would give what an older version computed, are new for each process.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).parents[2]
FILE = ROOT / "tests" / "hashes.json"
STORE = ROOT / "build" / "hashes"
ISAS = ("avx512_bf16", "avx512", "avx2", "portable")
Tables = dict[str, dict[str, str]]
"""For each instruction set the hashes by name."""


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 where hashes differ."""
    parser = argparse.ArgumentParser(prog="python -m tests.hashes", description="Compares the bits of all results.")
    parser.add_argument("--write", action="store_true", help="write tests/hashes.json")
    parser.add_argument("--only", metavar="WORD", default="", help="compare only names that hold a word")
    parser.add_argument("--store", type=Path, default=STORE, help="where compiled kernels are kept")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time, of one thread each")
    parser.add_argument("--of-process", choices=ISAS, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.of_process:
        print(json.dumps(hashes_of(chosen.of_process, chosen.only)))
        return 0
    if chosen.write and chosen.only:
        parser.error("expected --write or --only, got both: a file holds all names; write all of them")
    saved, here = None if chosen.write else json.loads(FILE.read_text()), machine()
    if saved is not None and saved["machine"] != here:
        print(f"nothing is compared: the hashes are of {saved['machine']}, and this is {here}")
        return 0
    found = computed(chosen.only, chosen.store, chosen.jobs)
    if saved is None:
        FILE.write_text(json.dumps({"machine": here, "commit": commit(), "hashes": found}, indent=1) + "\n")
        print(f"{_counted(found)}, written to {FILE.name}")
        return 0
    lines = list(differences(saved["hashes"], found, chosen.only))
    print("\n".join([*lines, f"{_counted(found)}; {len(lines)} differ from those of {saved['commit']}"]))
    return 1 if lines else 0


def differences(saved: Tables, found: Tables, only: str = "") -> Iterator[str]:
    """A line for each hash that is another one, is missing, or was not there before."""
    for isa in dict.fromkeys([*saved, *found]):
        before, now = saved.get(isa, {}), found.get(isa, {})
        for name in dict.fromkeys([*before, *now]):
            if only in name and before.get(name) != now.get(name):
                yield f"{isa}: {name}: expected {before.get(name, 'none')}, got {now.get(name, 'none')}"


def computed(only: str, store: Path, jobs: int) -> Tables:
    """The hashes of every instruction set that runs here, computed by processes of their own."""
    with ThreadPoolExecutor(jobs) as pool:
        tables = pool.map(partial(_of_process, only, store), ISAS)
        return {isa: table for isa, table in zip(ISAS, tables, strict=True) if table is not None}


def _of_process(only: str, store: Path, isa: str) -> dict[str, str] | None:
    settings = {name: value for name, value in os.environ.items() if not name.startswith("BLAST_")}
    settings |= {"BLAST_CACHE_DIR": str(store.absolute()), "BLAST_CXX": compiler(), "BLAST_ISA": isa}
    command = [sys.executable, "-m", "tests.hashes", "--of-process", isa, "--only", only]
    with tempfile.TemporaryDirectory() as folder:
        settings |= {"TORCHINDUCTOR_CACHE_DIR": folder, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=ROOT, env=settings, stdout=subprocess.PIPE, text=True, check=True)
    table: dict[str, str] | None = json.loads(done.stdout.splitlines()[-1])
    return table


def hashes_of(isa: str, only: str) -> dict[str, str] | None:
    """The hashes of the instruction set that `BLAST_ISA` asks for, None where it does not run here."""
    from tests.hashes import cases, models  # slow to import, and to compare nothing needs none

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of torch and transformers
    logging.getLogger("transformers").setLevel(logging.ERROR)
    gc.freeze()  # sparsify_ asks what is held anywhere, which takes long among all that was imported
    refusals = _Warnings()
    logging.getLogger("blast_compile").addHandler(refusals)
    ops = [compute for name, compute in cases.op_entries() if only in f"{name}, gradients"]
    whole = [compute for name, compute in models.model_entries(isa) if any(only in part for part in models.parts(name))]
    try:
        hashes = _joined([*ops, *whole])
    except ValueError as error:
        if "BLAST_ISA" in str(error):
            return None
        raise
    if whole:  # torch.compile has put the launcher in C++ under the ops by now
        changed = [name for name, value in _joined(ops).items() if hashes[name] != value]
        assert not changed, f"{isa}: calls through the launcher in C++ give other bits: {changed}"
    assert not refusals.messages, refusals.messages
    return {name: value for name, value in hashes.items() if only in name}


def _joined(entries: Iterable[Callable[[], dict[str, str]]]) -> dict[str, str]:
    return {name: value for compute in entries for name, value in compute().items()}


class _Warnings(logging.Handler):
    """Keeps what the package warns of: without a compiler, or a folder, everything would run by the reference."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def machine() -> dict[str, str]:
    """What bits depend on beside our code."""
    cpuinfo = Path("/proc/cpuinfo")
    rows = [line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line] if cpuinfo.exists() else []
    fields = {name.strip(): value.strip() for name, value in rows}
    cpu = [
        fields.get("model name", platform.processor()),
        f"family {fields.get('cpu family')}",
        f"model {fields.get('model')}",
    ]
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    return {
        "cpu": ", ".join([*cpu, torch.backends.cpu.get_cpu_capability()]),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "compiler": version.stdout.splitlines()[0],
        "libc": " ".join(platform.libc_ver()),
    }


def compiler() -> str:
    """The compiler that `BLAST_CXX` asks for, or the default one."""
    asked = os.environ.get("BLAST_CXX") or "g++"
    found = shutil.which(asked) or shutil.which("clang++")
    assert found, f"expected a C++ compiler, got none named {asked}; install g++, or set BLAST_CXX"
    return found


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    is_clean = not subprocess.run([*git, "diff", "--quiet", "HEAD", "--", ".", ":!tests"], check=False).returncode
    return head if is_clean else f"{head}, changed"


def _counted(tables: Tables) -> str:
    return ", ".join(f"{isa}: {len(table)} hashes" for isa, table in tables.items())


if __name__ == "__main__":
    sys.exit(main())
