"""`python train.py -m`: every combination of the values named, or a search (sweep.trials=N).

Works with every launcher. What is ours over Hydra's own sweeper: one folder a sweep, found again by the same command;
sweep.json from the start; a failed job loses no other; sweep.csv and sweep.html at the end, also of a sweep cut short.
"""

from __future__ import annotations

import logging
import shlex
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
        if self.here:  # it says "Launching 1 jobs" of each
            logging.getLogger(type(self.launcher).__module__).setLevel(logging.WARNING)
        self.errors: dict[int, Exception] = {}

    def sweep(self, arguments: list[str]) -> Any:
        """Runs all jobs. Raises SystemExit with status 2 (bad input) or 1 where one failed."""
        from hydra_plugins.mmadapter_sweeps.spaces import combinations, swept_keys

        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(words)
        self.swept = swept_keys(overrides)
        if self.config.dry_run:
            self._launch(dict(enumerate(combinations(overrides))), notes=False)
        elif self.config.sweep.trials is None:
            self._grid(dict(enumerate(combinations(overrides))))
        else:
            self._search(overrides)
        if self.errors:
            sys.exit(2 if all(isinstance(error, InputError) for error in self.errors.values()) else 1)

    def _grid(self, jobs: dict[int, list[str]]) -> None:
        """Runs all combinations. What the checks refuse is said first; a cluster's launcher then submits nothing."""
        from hydra_plugins.mmadapter_sweeps.checks import one_metric, refused

        confs = {number: self._conf(job) for number, job in jobs.items()}
        errors = refused(confs)
        usable = [number for number in jobs if number not in errors]
        metric = one_metric({f"job {number} ({self._own(jobs[number])})": confs[number] for number in usable})
        self._begin(confs[0], metric)
        self._note(jobs, confs, usable)
        if self.here:
            for number, error in errors.items():
                self._failed(number, error, jobs.pop(number))
        try:
            self._launch(jobs)
        finally:
            self._write()

    def _search(self, overrides: Sequence[Override]) -> None:
        from hydra_plugins.mmadapter_sweeps.checks import corners, metric_of_search, refuse_idle_keys
        from hydra_plugins.mmadapter_sweeps.spaces import fixed_overrides, spaces_of
        from mmadapter.config.sweep import direction_of
        from mmadapter.runs.search import Search, Trial, only_search

        if not getattr(self.config.get("cluster"), "wait", True):
            raise InputError("cluster.wait=false: a search must wait for results to go on. Set cluster.wait=true")
        fixed, wanted, parallel = fixed_overrides(overrides), self.config.sweep.trials, self.config.sweep.parallel
        spaces = spaces_of(overrides)
        confs = corners(self._conf, fixed, spaces)
        metric = metric_of_search(confs)
        refuse_idle_keys(confs, spaces)
        direction = direction_of(metric, self.config.sweep.direction)
        with only_search(self.folder):
            search = Search(self.folder, spaces, direction=direction, seed=self.config.sweep.seed)
            self._begin(next(iter(confs.values())), metric)
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
        from hydra_plugins.mmadapter_sweeps.checks import refused
        from mmadapter.runs.objective import value_in
        from mmadapter.runs.sweep_file import read_sweep, run_of

        jobs = {trial.number: [*fixed, *trial.overrides] for trial in trials}
        confs = {number: self._conf(job) for number, job in jobs.items()}
        errors = refused(confs)
        self._note(jobs, confs, [number for number in jobs if number not in errors])
        for number, error in errors.items():
            self._failed(number, error, jobs.pop(number))
        self._launch(jobs)
        values: dict[int, float | None] = dict.fromkeys(confs)
        noted = {job["number"]: job for job in read_sweep(self.folder)["jobs"]}
        for number in jobs.keys() - self.errors.keys():
            run = run_of(self.folder, noted[number])
            values[number] = None if run is None else value_in(run, metric)
            if values[number] is None:
                self._failed(number, InputError(f"the run has no {metric}"), jobs[number])
        return values

    def _conf(self, job: list[str]) -> RunConf:
        """The settings of one job, unchecked. Raises InputError for an unknown key."""
        from mmadapter.config import RunConf, typed

        return typed(self.context.config_loader.load_sweep_config(self.config, job), RunConf)

    def _begin(self, conf: RunConf, metric: str | None) -> None:
        from mmadapter.config.sweep import direction_of
        from mmadapter.runs.sweep_file import begin_sweep

        begin_sweep(
            self.folder,
            shlex.join(["python", *sys.argv]),
            self.swept,
            metric=metric,
            direction=direction_of(metric or "", conf.sweep.direction),
            trials=conf.sweep.trials,
        )

    def _note(self, jobs: dict[int, list[str]], confs: dict[int, RunConf], usable: Sequence[int]) -> None:
        """Writes the jobs down before the first one starts. Raises InputError where `usable` ones share a folder."""
        from hydra_plugins.mmadapter_sweeps.checks import shared_folder
        from mmadapter.runs.folder import run_folder
        from mmadapter.runs.sweep_file import note_jobs

        folders = {number: str(run_folder(conf)) for number, conf in confs.items()}
        first: dict[str, int] = {}
        for number in usable:
            folder = folders[number]
            if (other := first.setdefault(folder, number)) != number:
                why = shared_folder(confs[other], confs[number])
                raise InputError(
                    f"jobs {other} ({self._own(jobs[other])}) and {number} ({self._own(jobs[number])}) have one run "
                    f"folder, {folder}: {why}"
                )
        note_jobs(
            self.folder,
            {number: {"overrides": jobs[number], "run": folder, "failed": None} for number, folder in folders.items()},
        )

    @property
    def here(self) -> bool:
        """Whether jobs run in this process, one after the other: with the launcher that is Hydra's default."""
        return type(self.launcher).__name__ == "BasicLauncher"

    def _launch(self, jobs: dict[int, list[str]], notes: bool = True) -> None:
        """Gives jobs to the launcher, and notes which failed: here after each one, else of all that it gets at once."""
        for start, end in consecutive(sorted(jobs), most=1 if self.here else self.max_batch_size):
            batch = {number: jobs[number] for number in range(start, end)}
            if self.here:
                print(f"job {start}: {self._own(jobs[start])}", flush=True)
            results: Sequence[JobReturn] = self.launcher.launch(list(batch.values()), initial_job_idx=start)
            for (number, job), result in zip(batch.items(), results, strict=True):
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
        return " ".join(word for word in job if word.partition("=")[0].lstrip("+") in self.swept)

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


def consecutive(numbers: list[int], most: int | None = None) -> list[tuple[int, int]]:
    """Runs of at most `most` consecutive numbers as (first, last + 1): launchers count on from the first."""
    found: list[tuple[int, int]] = []
    for number in numbers:
        if found and found[-1][1] == number and number - found[-1][0] != most:
            found[-1] = (found[-1][0], number + 1)
        else:
            found.append((number, number + 1))
    return found
