"""The `Trainer` of transformers learns masks through the callback, and goes on bit for bit from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, Trainer, TrainingArguments

import blast_compile as blast
from blast_compile.base.errors import CheckpointError
from blast_compile.learning import Cubic, PruneAndGrow, Sparsifier
from blast_compile.learning.trainer import NAME, SparsifierCallback
from tests.checkpoint.saved import assert_same_state
from tests.families import FAMILIES

NUM_STEPS = 8
CONFIG = PruneAndGrow(
    schedule=Cubic(begin=0, end=6, final=0.75),
    layers=blast.BlockSparse(block=4),  # blocks under 8 run on the reference: nothing is compiled
    interval=2,
)


def batches() -> list[dict[str, Tensor]]:
    tokens = torch.randint(96, (64, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer(folder: Path, *, resume_from: Path | None = None, **options: Any) -> tuple[Trainer, Sparsifier]:
    """A trainer of a tiny Llama that saves every four steps."""
    model: Any = FAMILIES["llama"].build()
    sparsifier = Sparsifier(model, CONFIG)
    defaults: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": NUM_STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "save_steps": 4,
        "logging_steps": 2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }
    arguments = TrainingArguments(**(defaults | options))
    callback = SparsifierCallback(sparsifier, resume_from=resume_from)
    made = Trainer(model=model, args=arguments, train_dataset=batches(), callbacks=[callback])
    return made, sparsifier


def test_masks_are_learned_logged_and_saved(tmp_path: Path) -> None:
    run, sparsifier = trainer(tmp_path)
    run.train()
    assert [record.step for record in sparsifier.history] == [2, 4, 6]
    assert sparsifier.sparsity() == pytest.approx(0.75, abs=0.01)  # to within a block of each layer
    assert any(change.grown for record in sparsifier.history for change in record.layers.values())
    logged = [entry["sparsity"] for entry in run.state.log_history]
    assert logged[-1] == sparsifier.sparsity()
    assert 0 < logged[0] < logged[1] < logged[-1]
    model: Any = run.model
    for step in (4, NUM_STEPS):
        assert (tmp_path / f"checkpoint-{step}" / NAME).is_file()
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / f"checkpoint-{NUM_STEPS}")
    assert_same_state(loaded, model)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole, expected = trainer(tmp_path / "a")
    whole.train()
    resumed, sparsifier = trainer(tmp_path / "a")
    resumed.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-4"))
    assert_same_state(resumed.model, whole.model)  # type: ignore[arg-type]
    assert sparsifier.history == expected.history
    assert sparsifier.num_steps == NUM_STEPS


def test_accumulated_gradients_count_as_one_step(tmp_path: Path) -> None:
    run, sparsifier = trainer(tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.1)
    run.train()
    assert sparsifier.num_steps == NUM_STEPS
    assert sparsifier.sparsity() == pytest.approx(0.75, abs=0.01)


def test_a_checkpoint_elsewhere_is_named(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path / "a", max_steps=4)
    run.train()
    checkpoint = tmp_path / "a" / "checkpoint-4"
    resumed, _ = trainer(tmp_path / "b")
    with pytest.raises(CheckpointError, match=f"state of the sparsifier at step 4, got no .*{NAME}; give the callback"):
        resumed.train(resume_from_checkpoint=str(checkpoint))
    resumed, sparsifier = trainer(tmp_path / "b", resume_from=checkpoint)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert sparsifier.num_steps == NUM_STEPS


def test_checkpoints_of_the_model_alone_hold_no_state(tmp_path: Path) -> None:
    run, _ = trainer(tmp_path, max_steps=4, save_only_model=True)
    run.train()
    assert (tmp_path / "checkpoint-4" / "model.safetensors").is_file()
    assert not (tmp_path / "checkpoint-4" / NAME).exists()
