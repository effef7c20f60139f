"""`python train.py -m`: every combination of the values named, or a search (sweep.trials=N).

Works with every launcher. What is ours over Hydra's own sweeper: one folder a sweep, found again by the same command;
sweep.json from the start; a failed job loses no other; sweep.csv and sweep.html at the end, also of a sweep cut short.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write

from mmadapter.errors import InputError

if TYPE_CHECKING:
    from mmadapter.config import RunConf


class Sweeps(Sweeper):
    """Makes jobs of the command line, gives them to the launcher, writes down what came of them."""

    config: DictConfig

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        """`max_batch_size`: jobs given to the launcher at a time; `params`: sweeps that a config file names."""
        self.max_batch_size, self.params = max_batch_size, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.context = config, hydra_context
        self.folder = Path(str(config.hydra.sweep.dir))
        quoted = str(self.folder).replace("'", "\\'")
        with read_write(config), open_dict(config):  # in words: a job has another command line, and may run elsewhere
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
            config.hydra.sweep.dir = str(self.folder)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.errors: dict[int, Exception] = {}

    def sweep(self, arguments: list[str]) -> Any:
        """Runs all jobs. Raises SystemExit with status 2 (bad input) or 1 where one failed."""
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(words)
        self.shared = {f"{one.get_key_element()}=" for one in overrides if not one.is_sweep_override()}
        if self.config.dry_run:
            from hydra_plugins.mmadapter_sweeps.spaces import combinations

            self._launch(dict(enumerate(combinations(overrides))), notes=False)
        elif self.config.sweep.trials is None:
            self._grid(overrides)
        else:
            self._search(overrides)
        if self.errors:
            sys.exit(2 if all(isinstance(error, InputError) for error in self.errors.values()) else 1)

    def _grid(self, overrides: Sequence[Override]) -> None:
        from hydra_plugins.mmadapter_sweeps.spaces import combinations

        jobs = dict(enumerate(combinations(overrides)))
        confs = {number: self._conf(job) for number, job in jobs.items()}
        self._begin(confs[0])
        self._note(jobs, confs)
        size = self.max_batch_size or len(jobs)
        try:
            for start in range(0, len(jobs), size):
                self._launch({number: jobs[number] for number in range(start, min(start + size, len(jobs)))})
        finally:
            self._write()

    def _search(self, overrides: Sequence[Override]) -> None:
        from hydra_plugins.mmadapter_sweeps.spaces import fixed_overrides, spaces_of
        from mmadapter.runs.search import Search, Trial, only_search

        if not getattr(self.config.get("cluster"), "wait", True):
            raise InputError("cluster.wait=false: a search must wait for results to go on. Set cluster.wait=true")
        fixed, wanted, parallel = fixed_overrides(overrides), self.config.sweep.trials, self.config.sweep.parallel
        metric, direction = self._objective(fixed)
        with only_search(self.folder):
            search = Search(self.folder, spaces_of(overrides), direction=direction, seed=self.config.sweep.seed)
            self._begin(self._conf(fixed))
            batch: list[Trial] = search.unfinished()
            try:
                while batch or search.asked < wanted:
                    while not batch or (len(batch) < parallel and search.asked < wanted):
                        batch.append(search.ask(parallel))
                    now, batch = without_repeats(batch)
                    for number, value in self._trials(now, fixed, metric).items():
                        search.tell(number, value)
            finally:
                self._write()

    def _trials(self, trials: Sequence[Any], fixed: list[str], metric: str) -> dict[int, float | None]:
        """Runs trials; number -> the metric, None for one that failed. One that the checks refuse is not started."""
        from mmadapter.config import validate
        from mmadapter.runs.objective import value_in
        from mmadapter.runs.sweep_file import note_jobs, read_sweep, run_of

        jobs = {trial.number: [*fixed, *trial.overrides] for trial in trials}
        confs = {number: self._conf(job) for number, job in jobs.items()}
        self._note(jobs, confs)
        for number, conf in confs.items():
            try:
                validate(conf)
            except InputError as error:
                self._failed(number, error, jobs.pop(number))
        for start, end in consecutive(sorted(jobs)):
            self._launch({number: jobs[number] for number in range(start, end)})
        values: dict[int, float | None] = dict.fromkeys(confs)
        noted = {job["number"]: job for job in read_sweep(self.folder)["jobs"]}
        for number in jobs.keys() - self.errors.keys():
            run = run_of(self.folder, noted[number])
            values[number] = None if run is None else value_in(run, metric)
            if values[number] is None:
                note_jobs(self.folder, {number: {"failed": f"the run has no {metric}"}})
        return values

    def _objective(self, fixed: list[str]) -> tuple[str, str]:
        from mmadapter.config.sweep import direction_of
        from mmadapter.runs.objective import metric_of

        metric = metric_of(self._conf(fixed))
        if metric is None:
            raise InputError(
                "sweep.trials: the run has no scored task and no validation data. Name one in sweep.metric."
            )
        return metric, direction_of(metric, self.config.sweep.direction)

    def _conf(self, job: list[str]) -> RunConf:
        """The settings of one job, unchecked. Raises InputError for an unknown key."""
        from mmadapter.config import RunConf, typed

        return typed(self.context.config_loader.load_sweep_config(self.config, job), RunConf)

    def _begin(self, conf: RunConf) -> None:
        from mmadapter.config.sweep import direction_of
        from mmadapter.runs.objective import metric_of
        from mmadapter.runs.sweep_file import begin_sweep

        metric, asked = metric_of(conf), conf.sweep
        direction = direction_of(metric or "", asked.direction)
        command = " ".join(["python", *sys.argv])
        begin_sweep(self.folder, command, metric=metric, direction=direction, trials=asked.trials)

    def _note(self, jobs: dict[int, list[str]], confs: dict[int, RunConf]) -> None:
        """Writes the jobs down before the first one starts. Raises InputError where two have one run folder."""
        from mmadapter.config.run_folder import run_folder
        from mmadapter.runs.sweep_file import note_jobs

        folders = {number: str(run_folder(conf)) for number, conf in confs.items()}
        first: dict[str, int] = {}
        for number, folder in folders.items():
            if (other := first.setdefault(folder, number)) != number:
                raise InputError(
                    f"jobs {other} ({self._own(jobs[other])}) and {number} ({self._own(jobs[number])}) have one run "
                    f"folder, {folder}: what they differ in changes no result. Sweep over something else, or give each "
                    "a folder of its own in a command of its own: run=NAME"
                )
        note_jobs(
            self.folder,
            {number: {"overrides": jobs[number], "run": folder, "failed": None} for number, folder in folders.items()},
        )

    def _launch(self, jobs: dict[int, list[str]], notes: bool = True) -> None:
        """Gives jobs with consecutive numbers to the launcher, and notes which failed."""
        results: Sequence[JobReturn] = self.launcher.launch(list(jobs.values()), initial_job_idx=min(jobs))
        for (number, job), result in zip(jobs.items(), results, strict=True):
            if result.status is JobStatus.FAILED:
                self._failed(number, result._return_value, job, notes)

    def _failed(self, number: int, error: Exception, job: list[str], notes: bool = True) -> None:
        from mmadapter.runs.sweep_file import note_jobs

        self.errors[number] = error
        known = isinstance(error, InputError)
        text = str(error) if known else f"{type(error).__name__}: {error}"
        if not known:
            traceback.print_exception(error)
        print(f"error: job {number} ({self._own(job)}): {text}", file=sys.stderr)
        if notes:
            note_jobs(self.folder, {number: {"failed": text}})

    def _own(self, job: list[str]) -> str:
        """What a job differs in from the others."""
        return " ".join(word for word in job if not word.startswith(tuple(self.shared)))

    def _write(self) -> None:
        from mmadapter.runs.queue import jobs_in_queue
        from mmadapter.runs.sweep import sweep_text, write_sweep

        print(sweep_text(write_sweep(self.folder, jobs_in_queue())), flush=True)


def without_repeats(trials: list[Any]) -> tuple[list[Any], list[Any]]:
    """(trials with different values, the rest from the first repeat on): two jobs must not share a run folder."""
    seen: list[Any] = []
    for place, trial in enumerate(trials):
        if trial.values in seen:
            return trials[:place], trials[place:]
        seen.append(trial.values)
    return trials, []


def consecutive(numbers: list[int]) -> list[tuple[int, int]]:
    """Runs of consecutive numbers as (first, last + 1): launchers count on from the first."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found
