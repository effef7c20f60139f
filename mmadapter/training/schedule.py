"""Learning rate as a pure function of the step: linear warm-up, then half a cosine (official code, per iteration)."""

from __future__ import annotations

import math
from dataclasses import dataclass

REFERENCE_BATCH = 256  # the batch that base rates are stated for


def actual_lr(base_lr: float, effective_batch: int) -> float:
    """The learning rate that a base rate means for this many samples a step: base_lr x batch / 256."""
    return base_lr * effective_batch / REFERENCE_BATCH


@dataclass(frozen=True)
class Schedule:
    """Rates of a run that lasts `epochs` of `steps_per_epoch` optimizer steps; both epochs may be fractions."""

    lr: float  # actual rate at the end of the warm-up
    steps_per_epoch: int
    epochs: float
    warmup_epochs: float
    min_lr: float = 0.0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; at least one."""
        return max(1, math.ceil(self.epochs * self.steps_per_epoch - 1e-9))

    def epoch_of(self, step: int) -> float:
        """How many epochs are over before step number `step` (from 0)."""
        return step / self.steps_per_epoch

    def is_due(self, step: int, every: int | None, last: int) -> bool:
        """Whether what is done every so many steps (None: each epoch), and at the end, is due after `step` steps.

        `last` is the step after which it was done last.
        """
        if step in (0, last):
            return False
        return step == self.total_steps or step % (every or self.steps_per_epoch) == 0

    def lr_of(self, step: int) -> float:
        """The learning rate of step number `step` (from 0); with a warm-up the first is 0, as in the official code."""
        epoch = self.epoch_of(step)
        if epoch < self.warmup_epochs:
            return self.lr * epoch / self.warmup_epochs
        length = self.epochs - self.warmup_epochs
        done = 1.0 if length <= 0 else min(1.0, (epoch - self.warmup_epochs) / length)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))
