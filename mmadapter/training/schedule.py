"""Learning rate as a pure function of the step: linear warm-up, then half a cosine (official code, per iteration)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmadapter.training.settings import WARMUP_SHARE, SizedOptimizerConf

CUT_SHARE = 0.1  # of the run: what is left of a warm-up that is longer than the run


@dataclass(frozen=True)
class Schedule:
    """Rates of a run that lasts `epochs` of `steps_per_epoch` optimizer steps; both epochs may be fractions.

    With `steps` and `warmup_steps` these say how long it lasts instead: the same rates whatever an epoch is.
    """

    lr: float  # actual rate at the end of the warm-up
    steps_per_epoch: int
    epochs: float
    warmup_epochs: float
    min_lr: float = 0.0
    steps: int | None = None
    warmup_steps: int | None = None

    @classmethod
    def of(cls, settings: SizedOptimizerConf, steps_per_epoch: int) -> Schedule:
        """The schedule that the optimizer's settings mean for an epoch of so many steps.

        A warm-up that is longer than the run is cut to a tenth of it: else the full rate would never be reached.
        """
        warmup = wanted_warmup(settings, steps_per_epoch)
        if settings.steps is None:
            assert settings.epochs is not None, "settings without a length: `sized` gives one"
            epochs = settings.epochs
            cut = warmup if warmup <= epochs else epochs * CUT_SHARE
            return cls(settings.lr, steps_per_epoch, epochs, cut, settings.min_lr)
        cut = warmup if warmup <= settings.steps else settings.steps * CUT_SHARE
        unused = settings.epochs or 0.0, settings.warmup_epochs or 0.0
        return cls(settings.lr, steps_per_epoch, *unused, settings.min_lr, settings.steps, round(cut))

    def cut_warmup(self, settings: SizedOptimizerConf) -> str | None:
        """What to say of a warm-up that was longer than the run; None where it was not."""
        wanted = wanted_warmup(settings, self.steps_per_epoch)
        length, unit = (self.epochs, "epochs") if self.steps is None else (self.steps, "steps")
        if wanted <= length:
            return None
        now = self.warmup_epochs if self.steps is None else self.warmup_steps
        return (
            f"the warm-up of {wanted:g} {unit} is longer than the run of {length:g}; it is cut to {now:g} "
            f"(optimizer.warmup_{unit})"
        )

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run; at least one."""
        if self.steps is not None:
            return self.steps
        return max(1, math.ceil(self.epochs * self.steps_per_epoch - 1e-9))

    @property
    def total_epochs(self) -> float:
        """How many epochs the whole run is."""
        return self.epochs if self.steps is None else self.steps / self.steps_per_epoch

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
        if self.steps is None:
            place, warmup, end = self.epoch_of(step), self.warmup_epochs, self.epochs
        else:
            place, warmup, end = float(step), float(self.warmup_steps or 0), float(self.steps)
        if place < warmup:
            return self.lr * place / warmup
        length = end - warmup
        done = 1.0 if length <= 0 else min(1.0, (place - warmup) / length)
        return self.min_lr + (self.lr - self.min_lr) * 0.5 * (1.0 + math.cos(math.pi * done))


def wanted_warmup(settings: SizedOptimizerConf, steps_per_epoch: int) -> float:
    """The warm-up that the settings ask for: in steps where they count the run in steps, else in epochs."""
    in_steps, in_epochs, epochs = settings.warmup_steps, settings.warmup_epochs, settings.epochs or 0.0
    if settings.steps is not None:
        if in_steps is not None:
            return in_steps
        return round(settings.steps * WARMUP_SHARE if in_epochs is None else in_epochs * steps_per_epoch)
    if in_steps is not None:
        return in_steps / steps_per_epoch
    return epochs * WARMUP_SHARE if in_epochs is None else in_epochs
