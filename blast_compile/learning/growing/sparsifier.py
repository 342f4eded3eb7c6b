"""`Sparsifier`: learns block masks while a model trains, by pruning and growing on a schedule.

The method is BLaST's (arXiv 2507.03117), whose score, growth and schedule are not public: ours are our own choice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from blast_compile.base.errors import OptionsError, TrainingError
from blast_compile.base.log import logger
from blast_compile.base.models import bare
from blast_compile.learning.growing import learners, resume
from blast_compile.learning.growing.config import PruneAndGrow
from blast_compile.learning.growing.observation import Observation, Probes
from blast_compile.learning.growing.optimizers import StepWatch, innermost, keeps_zeros
from blast_compile.learning.growing.scores import GRADIENT_SCORES
from blast_compile.learning.growing.update import UpdateRecord, carry_out_, clear_, decide, gather


class Sparsifier:
    """Makes the targets of `config.layers` masked layers and changes their masks on `config.schedule`.

    Dense targets start with the mask that the schedule asks for at step 0; masked ones go on from theirs. Call `step()`
    once after each `optimizer.step()`, on every rank alike. `docs/training.md` has the loop and its rules.

    model: changed in place; wrappers of DDP and `torch.compile` are looked through. process_group: the ranks that train
    copies of this model together; None means the default group where one is initialised.

    Raises `LayerError` where a target is packed, tied, sharded or learned by another `Sparsifier`, or none can be
    sparse, and `OptionsError` where the optimizer lacks a weight; the model is unchanged then.
    """

    def __init__(
        self,
        model: nn.Module,
        config: PruneAndGrow,
        optimizer: Optimizer | None = None,
        *,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if not isinstance(config, PruneAndGrow):
            raise OptionsError(
                f"expected a PruneAndGrow, got {config!r}; write PruneAndGrow(Cubic(0.9, end=1000), ...)"
            )
        self.config = config
        self.history: list[UpdateRecord] = []
        self.num_steps = 0
        self.layers, new = learners.make_learners_(bare(model), config.layers, optimizer)
        self._group = process_group
        self._is_late = False
        self._watch: StepWatch | None = None
        self._seen = Observation(self.layers, config.score)
        self._probes = Probes(self.layers.values()) if config.gradient_frac > 0 else None
        for layer in self.layers.values():
            layer.clear_dropped_()
        self._start(new)
        self._switch_probes()
        learners.take(self.layers, self)
        if optimizer is not None:
            self.attach(optimizer)

    def attach(self, optimizer: Optimizer) -> None:
        """Watches the steps of `optimizer` from now on, in place of any other. Raises as the class does."""
        learners.check_free(self.layers, self)
        learners.check_optimizer(optimizer, self.layers)
        optimizer = innermost(optimizer)
        learners.take(self.layers, self)
        if self._watch is not None:
            self._watch.remove()
        for layer in self.layers.values():
            clear_(layer, ~layer.mask.kept, optimizer)
        self._watch = StepWatch(optimizer, before=self._observe)

    def detach(self) -> None:
        """Takes hooks and probes away: the masks stay as they are, and `step` works no more until `attach`.

        Another `Sparsifier` may learn the masks then.
        """
        learners.give_back(self.layers, self)
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
        if self._probes is not None:
            self._probes.detach()

    @torch.no_grad()
    def step(self) -> UpdateRecord | None:
        """Counts an optimizer step and, where the schedule says so, updates the masks; the record of it, or None.

        Steps that `GradScaler` skipped are not counted. Raises `TrainingError` where calls come in another order,
        `LayerError` where a layer was packed meanwhile.
        """
        if self._watch is None:
            raise TrainingError("expected an optimizer to watch, got none: call attach(optimizer) before step()")
        learners.check_masked(self.layers)
        num_steps, optimizer = self._watch.num_steps, self._watch.optimizer
        self._watch.forget()
        if not self._seen.look():
            raise TrainingError(
                "expected backward() and optimizer.step() before step(), got no gradient in any sparse layer; "
                "call step() after optimizer.step() and before zero_grad()"
            )
        if num_steps > 1:
            raise TrainingError(f"expected step() after each optimizer step, got {num_steps} of them since the last")
        if num_steps == 0:
            self._switch_probes()  # forgets what the skipped step measured
            return None
        if self.config.score == "movement":
            self._seen.accept()
        if not keeps_zeros(optimizer):
            for layer in self.layers.values():
                layer.clear_dropped_()
        record = self._update(optimizer, self.num_steps + 1) if self._is_due(self.num_steps + 1) else None
        self.num_steps += 1
        self._switch_probes()
        return record

    def sparsity(self) -> float:
        """Fraction of zero blocks over all learning layers."""
        counts = [(int(layer.block_mask.count_nonzero()), layer.block_mask.numel()) for layer in self.layers.values()]
        return 1.0 - sum(kept for kept, _ in counts) / sum(blocks for _, blocks in counts)

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors. The masks themselves are in the model's state dict, moments in the optimizer's."""
        return resume.state_of(self.layers, self.config, self._seen) | {
            "num_steps": self.num_steps,
            "is_late": self._is_late,
            "history": [asdict(record) for record in self.history],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where another `Sparsifier` stopped; load model and optimizer too. Raises `LayerError`.

        A run that resumes between two optimizer steps gives the bits of one that was never interrupted.
        """
        sums, history, (num_steps, is_late) = resume.checked(state, self.layers, self.config)
        self._seen.sums, self.history = sums, history
        self.num_steps, self._is_late = num_steps, is_late
        self._switch_probes()

    def _is_due(self, step: int) -> bool:
        return self._is_late or self.config.is_update(step)

    def _switch_probes(self) -> None:
        if self._probes is not None:
            self._probes.switch(on=self._is_due(self.num_steps + 1))

    def _observe(self, optimizer: Optimizer) -> None:
        """Runs just before each optimizer step."""
        self._seen.look()
        score = self.config.score
        if score == "movement" or (score == "saliency" and self._is_due(self.num_steps + 1)):
            self._seen.observe(optimizer)

    def _update(self, optimizer: Optimizer, step: int) -> UpdateRecord | None:
        """None where a score or norm is not finite: the update waits for the next step then."""
        by_gradient = self._seen.scores() if self.config.score in GRADIENT_SCORES else None
        norms = None if self._probes is None else self._probes.norms()
        if (by_gradient is None and self.config.score in GRADIENT_SCORES) or (
            norms is None and self._probes is not None
        ):
            raise TrainingError(
                f"expected a backward pass before the update of step {step}, got none since the last step; "
                "keep the layers' probes and let backward() reach them"
            )
        evidence = gather(self.layers, self.config.score, by_gradient, norms, self._group)
        self._is_late = not all(found.is_finite for found in evidence.values())
        if self._is_late:
            logger.warning("step %d: masks wait for the next step, a score or gradient norm is not finite", step)
            for name, found in evidence.items():
                self._seen.restart(name, ~found.scores.isfinite())  # summed over ranks, so all of them do it
            return None
        decided = decide(evidence, self.config, step, self.config.fraction.at(step))
        changes = carry_out_(evidence, decided, optimizer)
        for name, found in evidence.items():
            self._seen.restart(name, found.kept != decided[name])
        self.history.append(UpdateRecord(step, self.config.schedule.target(step), changes))
        return self.history[-1]

    def _start(self, new: set[str]) -> None:
        """The mask of layers that were dense: by weights alone, as no gradient is known yet."""
        if self.config.schedule.target(0) > 0 and new:
            layers = {name: layer for name, layer in self.layers.items() if name in new}
            score = "l2" if self.config.score in GRADIENT_SCORES else self.config.score
            evidence = gather(layers, score, None, None, self._group)
            carry_out_(evidence, decide(evidence, self.config, step=0, grow_frac=0.0), None)
