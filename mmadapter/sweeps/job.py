"""One job of a sweep: its command line, and what the sweep must know of the run that it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mmadapter.errors import InputError


@dataclass(frozen=True)
class PlannedRun:
    """What a sweep must know of a run before it starts; the command tells it: no sweep knows the settings of a run."""

    folder: Path
    digest: str  # of the settings that change the result
    metric: str | None  # what it is compared by; None where it will have no such number, or cannot run
    direction: str  # "minimize" or "maximize"
    is_finished: Callable[[], bool]
    error: InputError | None  # why its settings cannot be used


@dataclass
class Job:
    number: int
    words: list[str]  # its command line: key=value
    run: PlannedRun
    slurm_job: str | None = None  # its number in SLURM, once it is submitted
    log: Path | None = None


def job_of(
    number: int, words: list[str], task_function: TaskFunction, context: HydraContext, config: DictConfig
) -> Job:
    """Composes the settings of a job and asks the task function's `planned_run` about them.

    Raises InputError, or what Hydra raises, for a key or a value that no setting has.
    """
    planned_run: Callable[[DictConfig], PlannedRun] = vars(task_function)["planned_run"]
    return Job(number, words, planned_run(context.config_loader.load_sweep_config(config, words)))
