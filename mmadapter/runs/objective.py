"""One number a run: what the jobs of a sweep are compared by, and what a search improves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmadapter.config.scores import SCORES_OF, scores_of
from mmadapter.config.sweep import VALIDATION_LOSS
from mmadapter.runs.run_files import RunFiles, read_run


def main_scores(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """TASK.SCORE -> value of the scores that stand in tables; `evaluations` is task -> metrics.json."""
    return _scores(evaluations, lambda kind: SCORES_OF[kind][1])


def all_scores(evaluations: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """TASK.SCORE -> value, the main ones first."""
    return main_scores(evaluations) | _scores(evaluations, lambda kind: SCORES_OF[kind][2])


def _scores(evaluations: Mapping[str, Mapping[str, Any]], names_of: Any) -> dict[str, float]:
    found: dict[str, float] = {}
    for task, metrics in evaluations.items():
        kind = metrics.get("task", task)
        if kind not in SCORES_OF:
            continue
        part = SCORES_OF[kind][0]
        values = metrics if part is None else metrics.get(part) or {}
        found |= {f"{task}.{name}": values[name] for name in names_of(kind) if is_number(values.get(name))}
    return found


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def metric_of(conf: Any) -> str | None:
    """`sweep.metric`, or what it is where nothing is asked for; None for a run that will have no such number.

    That is the main score of the first task of `evaluate` that is scored, else the lowest validation loss.
    """
    if conf.sweep.metric is not None:
        return conf.sweep.metric
    for name in conf.evaluate:
        if scores := scores_of(conf.tasks[name]):
            return f"{name}.{scores[0]}"
    return VALIDATION_LOSS if conf.data.validation else None


def value_of(run: RunFiles, metric: str | None) -> float | None:
    """The metric of a run, from its files; None where the run does not have it (yet)."""
    if metric == VALIDATION_LOSS:
        return run.best_validation_loss
    scores = all_scores({name: evaluation.metrics for name, evaluation in run.evaluations.items()})
    return scores.get(metric or "")


def value_in(folder: Path, metric: str | None) -> float | None:
    """The same of a run folder."""
    return value_of(read_run(folder, whole=False), metric)
