"""`sweep`: what the jobs of `python train.py -m` are compared by, and how a search goes. Nothing here changes a run."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mmadapter.settings import choice, nearest, number, plain
from mmadapter.tasks import scores_of, task_of
from mmadapter.tasks.settings import TaskSettings

VALIDATION_LOSS = "validation_loss"


@dataclass
class SweepConf:
    # TASK.SCORE (scienceqa.Avg, coco_caption.CIDEr), or validation_loss, the lowest one;
    # null = the first score of the first task that has one, else the validation loss
    metric: str | None = plain(None, influence=False)
    direction: str | None = choice(None, "maximize", "minimize", influence=False)  # null = down for a loss, else up
    trials: int | None = number(None, at_least=1, influence=False)  # null = every combination; N = search with Optuna
    parallel: int = number(1, at_least=1, influence=False)  # trials of a search that run at the same time
    seed: int = number(0, at_least=0, influence=False)  # of the search's proposals


def sweep_problems(sweep: SweepConf, evaluated: Mapping[str, TaskSettings]) -> Iterator[str]:
    """A metric that no job will have; `evaluated` are the tasks that run after the training."""
    if sweep.metric is None or sweep.metric == VALIDATION_LOSS:
        return
    name, _, score = sweep.metric.partition(".")
    if not score or name not in evaluated:
        allowed = [VALIDATION_LOSS, *(f"{name}.SCORE" for name in evaluated)]
        yield (
            f"sweep.metric={sweep.metric}: allowed are {', '.join(allowed)}, e.g. scienceqa.Avg or coco_caption.CIDEr. "
            "A task counts where `evaluate` names it."
        )
    elif score not in (scores := scores_of(evaluated[name])):
        yield f"sweep.metric={sweep.metric}: {_why_not(score, scores, name, evaluated[name])}"


def _why_not(score: str, scores: list[str], name: str, task: TaskSettings) -> str:
    """Why a task that is evaluated will not have this score, and what to do."""
    if reason := task_of(task).why_no_score(score, f"tasks.{name}"):
        return reason
    own = [f"{name}.{one}" for one in scores]
    near = nearest(f"{name}.{score}", own, most=1)
    return f"{name} has no such score. " + (f"Did you mean {near[0]}? " if near else "") + f"It has: {', '.join(own)}"


def metric_of(conf: Any) -> str | None:
    """`sweep.metric`; not set: the first score of the first task of `evaluate` with a score, else the validation loss.

    None for a run that will have no such number.
    """
    if conf.sweep.metric is not None:
        return conf.sweep.metric
    for name in conf.evaluate:
        if scores := scores_of(conf.tasks[name]):
            return f"{name}.{scores[0]}"
    return VALIDATION_LOSS if conf.data.validation else None


def direction_of(metric: str, asked: str | None) -> str:
    """Which way the metric gets better: as asked, else down for a loss and up for a score."""
    return asked or ("minimize" if metric.endswith("loss") else "maximize")
