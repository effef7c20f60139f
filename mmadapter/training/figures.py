"""A training in numbers: a step's line of metrics.jsonl, the summary, the closing line."""

from __future__ import annotations

import math
from typing import Any

from mmadapter.terminal import duration
from mmadapter.training.checkpoint import Position
from mmadapter.training.engine import StepResult
from mmadapter.training.memory import peak_memory
from mmadapter.training.movement import Moved, moved_text
from mmadapter.training.schedule import Schedule

DETAILED_LINES = 100  # about this many lines of metrics.jsonl carry all gates and the groups' movement


def step_record(place: Position, schedule: Schedule, result: StepResult, lr: float, seconds: float) -> dict[str, Any]:
    """The line of the step that was just finished, which took `seconds`."""
    record: dict[str, Any] = {
        "step": place.step,
        "epoch": schedule.epoch_of(place.step),
        "loss": result.loss,
        "lr": lr,
        "supervised_tokens": result.supervised_tokens,
        "tokens_per_s": result.supervised_tokens / max(seconds, 1e-9),
        "seconds": place.seconds,
        "grad_norm": result.grad_norm,
        "loss_by_source": result.loss_by_source,
    }
    if len(result.grad_norms) > 1:
        record["grad_norm_by_group"] = result.grad_norms
    return record


def is_detailed(step: int, total: int, log_every_steps: int) -> bool:
    """Whether a step's line carries the gates and the groups' movement, too."""
    return step % max(log_every_steps, math.ceil(total / DETAILED_LINES)) == 0 or step in (1, total)


def summary_of(place: Position, schedule: Schedule, effective_batch: int, moved: Moved) -> dict[str, Any]:
    """What a finished or interrupted training comes to."""
    return {
        "steps": place.step,
        "total_steps": schedule.total_steps,
        "epochs": schedule.epoch_of(place.step),
        "finished": place.step >= schedule.total_steps,
        "loss": place.loss,
        "best_validation_loss": place.best_loss,
        "best_step": place.best_step,
        "nonfinite_steps": place.nonfinite_steps,
        "supervised_tokens": place.supervised_tokens,
        "seconds": place.seconds,
        "lr": schedule.lr,
        "effective_batch": effective_batch,
        "movement": moved,
        "peak": peak_memory(),
    }


def closing_line(place: Position, moved: Moved) -> str:
    """How long, how low, how far."""
    text = f"trained {place.step:,} steps in {duration(place.seconds)}"
    text += "" if place.loss is None else f", last loss {place.loss:.4f}"
    if place.best_loss is not None:
        text += f", lowest validation loss {place.best_loss:.4f} at step {place.best_step:,}"
    return f"{text}\nmoved from the start: {moved_text(moved)}"
