"""States in files: what comes out is what went in, and what cannot be read is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from blast_compile.base.errors import CheckpointError
from blast_compile.learning import state_file


def assert_same(first: Any, second: Any) -> None:
    assert type(first) is type(second)
    if isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert list(first) == list(second)
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    else:
        assert repr(first) == repr(second)


def test_a_state_comes_back(tmp_path: Path) -> None:
    shared = torch.randn(3, 4)
    state: dict[Any, Any] = {
        "numbers": [0, 1, -(2**70), 0.1, float("nan"), float("inf"), True, None, "tensor"],
        "pairs": (("list", [1]), ["tensor", "0"], (), [], {}),
        3: {"masks": shared > 0, (1, 2): shared.t(), None: shared[1:].to(torch.bfloat16)},
        "none": torch.zeros(0, 3, dtype=torch.int32),
        "one": torch.tensor(7),
    }
    state_file.write(tmp_path / "a.safetensors", state)
    assert_same(state_file.read(tmp_path / "a.safetensors"), state)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": [1, {2}]}, r"got state\['a'\]\[1\], a set"),
        ({"a": {"b": Path()}}, r"got state\['a'\]\['b'\], a PosixPath"),
        ({"a": torch.float32}, "a dtype"),
    ],
)
def test_what_has_no_place_in_a_file_is_named(state: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        state_file.write(tmp_path / "a.safetensors", state)
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="expected a state file, got .*FileNotFoundError"):
        state_file.read(path)
    state_file.write(path, {"a": torch.ones(9)})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="expected a state file, got .*SafetensorError"):
        state_file.read(path)
    save_file({"a": torch.ones(9)}, path)
    with pytest.raises(CheckpointError, match="got .* of another program"):
        state_file.read(path)
    save_file({}, path, metadata={"format": "blast_compile.state", "version": "2"})
    with pytest.raises(CheckpointError, match="expected a state of version 1 or older, got version 2 .* upgrade"):
        state_file.read(path)
    save_file({}, path, metadata={"format": "blast_compile.state", "version": "1", "tree": '["tensor", "0"]'})
    with pytest.raises(CheckpointError, match="expected a state file"):
        state_file.read(path)


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    state_file.write(path, {"a": 1})

    def fail(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space left"):
        state_file.write(path, {"a": 2})
    assert state_file.read(path) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1
