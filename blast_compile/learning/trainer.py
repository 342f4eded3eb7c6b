"""A callback that drives a `Sparsifier` from the `Trainer` of transformers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from blast_compile.base.errors import CheckpointError
from blast_compile.learning import state_file

NAME = "sparsifier.safetensors"


class Sparsifying(Protocol):
    """What the callback asks of a `Sparsifier`."""

    def attach(self, optimizer: Optimizer) -> None:
        """Watches the steps of `optimizer`, or of the one that it wraps."""

    def step(self) -> object:
        """Counts an optimizer step and updates masks where they are due."""

    def sparsity(self) -> float:
        """The fraction of zero blocks."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs, the model and the optimizer left out."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`."""


class SparsifierCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Learns masks while a `Trainer` trains: `Trainer(model, ..., callbacks=[SparsifierCallback(sparsifier)])`.

    Make the `Sparsifier` of the model before the `Trainer` trains, in a resumed run too: checkpoints hold masks, and
    only masked layers take them. Its state goes into each checkpoint as `sparsifier.safetensors`, and `sparsity` into
    each log. resume_from: the folder whose state a resumed run goes on with, where that is not the checkpoint of the
    same step in `output_dir`.
    """

    def __init__(self, sparsifier: Sparsifying, *, resume_from: str | os.PathLike[str] | None = None) -> None:
        self.sparsifier = sparsifier
        self._resume_from = None if resume_from is None else Path(resume_from)

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, *_: Any, **kwargs: Any) -> None:
        """Watches the optimizer, whose state is loaded by now, and goes on from the checkpoint of a resumed run."""
        self.sparsifier.attach(kwargs["optimizer"])
        if state.global_step:
            path = (self._resume_from or _checkpoint(args, state)) / NAME
            if not path.is_file():
                raise CheckpointError(
                    f"expected the state of the sparsifier at step {state.global_step}, got no {path}; give the "
                    "callback the folder that the run resumes from as resume_from="
                )
            self.sparsifier.load_state_dict(state_file.read(path))

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Counts the step, while gradients are there: `Trainer` zeroes them before `on_step_end`."""
        self.sparsifier.step()

    def on_log(self, *args: Any, **kwargs: Any) -> None:
        """Adds the sparsity to what is logged; loggers that were given to the `Trainer` before this one miss it."""
        state: TrainerState = args[1]
        sparsity = self.sparsifier.sparsity()
        for logs in (kwargs.get("logs"), state.log_history[-1] if state.log_history else None):
            if logs is not None:
                logs["sparsity"] = sparsity

    def on_save(self, args: TrainingArguments, state: TrainerState, *_: Any, **__: Any) -> None:
        """Saves the sparsifier's state beside the model and the optimizer, on one process."""
        if state.is_world_process_zero and not args.save_only_model:
            state_file.write(_checkpoint(args, state) / NAME, self.sparsifier.state_dict())


def _checkpoint(args: TrainingArguments, state: TrainerState) -> Path:
    """The folder of the checkpoint of this step."""
    return Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
