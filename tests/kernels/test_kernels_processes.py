"""Kernels between real processes: compiled once a machine, rebuilt when damaged, and alive after a fork."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from blast_compile.base import env

PREAMBLE = """
import logging, os, sys, time
logging.basicConfig(format="%(levelname)s %(message)s", level=logging.WARNING)
import torch
from torch import nn
import blast_compile as blast
torch.set_num_threads(2)

def model(depth=12):
    torch.manual_seed(0)
    layers = [nn.Linear(256, 256) for _ in range(depth)]
    return blast.sparsify_(nn.Sequential(*layers), blast.BlockSparse(block=32, sparsity=0.5, targets="all"))

def dense(net, x):
    for layer in net:
        x = nn.functional.linear(x, layer.weight * layer.mask.elements(), layer.bias)
    return x

def check(net, run=None):
    x = torch.randn(64, 256)
    torch.testing.assert_close((run or net)(x), dense(net, x))
"""


class Machine:
    """A store and a compiler that writes down when it compiles."""

    def __init__(self, folder: Path) -> None:
        self.store, self.log, script = folder / "store", folder / "log", folder / "compiler"
        script.write_text(
            f'#!/bin/sh\ncase "$*" in *kernel.cpp*) echo compiled >> "{self.log}"; sleep 0.5;; esac\n'
            f'exec {env.cxx()} "$@"\n'
        )
        script.chmod(0o700)
        self.log.touch()
        # The plainest instruction set compiles fastest.
        self.environment = {"BLAST_CACHE_DIR": str(self.store), "BLAST_CXX": str(script), "BLAST_ISA": "portable"}

    @property
    def num_compiled(self) -> int:
        return len(self.log.read_text().splitlines())

    def start(self, code: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", PREAMBLE + textwrap.dedent(code)],
            env={**os.environ, **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    if env.cxx() is None:
        pytest.skip("no C++ compiler here")
    return Machine(tmp_path)


def finish(process: subprocess.Popen[str]) -> str:
    """What a process wrote to its standard error."""
    try:
        _, err = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err
    return err


def test_one_spec_is_compiled_once_a_machine_and_again_when_damaged(machine: Machine) -> None:
    code = "with torch.no_grad(): check(model())"
    both = [machine.start(code) for _ in range(2)]
    assert [finish(process) for process in both] == ["", ""]
    assert machine.num_compiled == 1, "twelve layers in two processes share one kernel"
    (binary,) = machine.store.glob("*/kernel.so")
    binary.write_bytes(binary.read_bytes()[:-1000])
    assert "a damaged store entry counts as missing" in finish(machine.start(code))
    assert machine.num_compiled == 2
    assert finish(machine.start(code)) == ""
    assert machine.num_compiled == 2, "a later process compiles nothing"


def test_forked_children_compute(machine: Machine) -> None:
    """OpenMP's threads are gone in a child, so a parallel region there would wait for ever."""
    code = """
    from torch.utils.data import DataLoader
    net = model(2)
    with torch.no_grad():
        check(net)
        x = torch.randn(64, 256)
        expected = dense(net, x)
        pid = os.fork()
        if pid == 0:  # torch's own parallel products would hang here
            os._exit(7 if (net(x) - expected).abs().max() < 1e-5 else 1)
        for _ in range(200):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                break
            time.sleep(0.05)
        else:
            os.kill(pid, 9)
            raise SystemExit("the child hangs")
        assert os.waitstatus_to_exitcode(status) == 7
        check(net)  # the parent goes on with all its threads

        class Rows(torch.utils.data.Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, row):
                with torch.no_grad():
                    return net(torch.full((64, 256), float(row)))

        for row, y in enumerate(DataLoader(Rows(), batch_size=None, num_workers=1, timeout=20)):
            torch.testing.assert_close(y, dense(net, torch.full((64, 256), float(row))))
    """
    finish(machine.start(code))


def test_without_a_compiler_every_delegate_works_after_one_warning(machine: Machine) -> None:
    code = """
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = model(2)
        def forward(self, x):
            return torch.tanh(self.net(x)) * 2  # something for Inductor to compile
    block = Block()
    x = torch.randn(8, 256)
    expected = torch.tanh(dense(block.net, x)) * 2
    for delegate in ("inductor", "aot_eager", "eager"):
        torch._dynamo.reset()
        run = torch.compile(block, backend="blast", options={"delegate": delegate})
        with torch.no_grad():
            torch.testing.assert_close(run(x), expected)
        run(x).sum().backward()
        assert all(layer.weight.grad is not None for layer in block.net)
    torch._dynamo.reset()
    try:
        torch.compile(block, backend="blast", options={"fallback": "error"})(x)
    except Exception as error:
        assert "InvalidCxxCompiler" in str(error), error
    else:
        raise SystemExit("Inductor compiles without a compiler")
    """
    err = finish(machine.start(code, PATH="/nonexistent", BLAST_CXX="", CXX=""))
    (warning,) = [line for line in err.splitlines() if line.startswith("WARNING")]
    assert "no C++ compiler" in warning
