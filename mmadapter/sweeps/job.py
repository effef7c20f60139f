"""One job of a sweep: its command line, and what a sweep must know of its run before it starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hydra.types import HydraContext
from omegaconf import DictConfig

from mmadapter.config import RunConf, typed, validate
from mmadapter.errors import InputError
from mmadapter.runs.folder import is_finished, run_folder
from mmadapter.sweeps.settings import VALIDATION_LOSS, direction_of
from mmadapter.tasks import task_of


@dataclass
class Job:
    number: int
    words: list[str]  # its command line: key=value
    folder: Path  # of its run
    is_finished: Callable[[], bool]
    metric: str | None = None  # what it is compared by; None where it will have no such number, or cannot run
    direction: str = "maximize"  # in which the metric gets better
    error: InputError | None = None  # why its settings cannot be used
    slurm_job: str | None = None  # its number in SLURM, once it is submitted
    log: Path | None = None


_refusals: dict[str, InputError | None] = {}  # host, encoder and adapter -> why they cannot be put together


def job_of(number: int, words: list[str], context: HydraContext, config: DictConfig) -> Job:
    """Composes the settings of a job and checks them; each distinct model is built once, on the meta device.

    Raises InputError, or what Hydra raises, for a key or a value that no setting has, and for `run=` of a folder that
    holds something else.
    """
    conf = typed(context.config_loader.load_sweep_config(config, words), RunConf)
    error = None
    try:
        validate(conf)
        if conf.vision.enabled is None:  # by the data: the run's folder is that of the settings that they make
            from mmadapter.training.by_data import decided_by_data

            conf, _ = decided_by_data(conf)
        parts = conf.host, conf.vision, conf.adapter
        if (model := repr(parts)) not in _refusals:
            from mmadapter.model import AdaptedModel  # loads torch, which `train.py --help` does without

            _refusals[model] = None
            try:
                AdaptedModel.build(*parts, device="meta")
            except InputError as refusal:
                _refusals[model] = refusal
        error = _refusals[model]
    except InputError as refusal:
        error = refusal
    folder, metric = run_folder(conf), metric_of(conf) if error is None else None
    direction = direction_of(metric, conf.sweep.direction)
    return Job(number, words, folder, partial(is_finished, folder, conf), metric, direction, error)


def metric_of(conf: RunConf) -> str | None:
    """`sweep.metric`; not set: the first score of the first task that has one, else the validation loss.

    None for a run that will have no such number.
    """
    if conf.sweep.metric is not None:
        return conf.sweep.metric
    scores = [f"{name}.{score}" for name in conf.evaluate for score in task_of(conf.tasks[name]).scores()]
    return next(iter(scores), VALIDATION_LOSS if conf.data.validation else None)
