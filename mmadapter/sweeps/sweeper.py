"""`python train.py -m`: every combination of the values named, or a search (sweep.trials=N).

Works with every launcher. What it adds to Hydra's own sweeper: one folder a sweep, which the same command finds again;
all jobs are checked before the first one starts; sweep.json from the start; a failed job loses no other; sweep.csv and
sweep.html at the end, also of a sweep that was interrupted.
"""

from __future__ import annotations

import itertools
import logging
import shlex
import sys
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from mmadapter.config import RunConf, settings_digest, typed, validate
from mmadapter.config.run_folder import run_folder
from mmadapter.config.sweep import direction_of, metric_of
from mmadapter.errors import InputError
from mmadapter.runs.state import RunFolder, jobs_in_queue
from mmadapter.runs.sweep import begin_sweep, metric_value, note_jobs
from mmadapter.sweeps.results import sweep_text, write_sweep
from mmadapter.sweeps.search import Search, Space, Span, Trial, ends_of, listed_values, only_search, spaces_of

Words = list[str]  # the command line of one job: key=value


class Sweeps(Sweeper):
    """Makes jobs of the command line, gives them to the launcher, writes down what became of them."""

    config: DictConfig

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        """`max_batch_size`: jobs given to the launcher at a time; `params`: sweeps that a config file names."""
        self.max_batch_size, self.params = max_batch_size, params or {}
        self.errors: dict[int, Exception] = {}  # by job number

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.context = config, hydra_context
        self.folder = Path(str(config.hydra.sweep.dir))
        quoted = str(self.folder).replace("'", "\\'")
        with read_write(config), open_dict(config):  # a job has another command line: it must not compute another name
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")
            config.hydra.sweep.dir = str(self.folder)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            config=config, hydra_context=hydra_context, task_function=task_function
        )
        self.here = type(self.launcher).__name__ == "BasicLauncher"  # jobs run in this process, one after the other
        if self.here:  # it says "Launching 1 jobs" of each
            logging.getLogger(type(self.launcher).__module__).setLevel(logging.WARNING)

    def sweep(self, arguments: list[str]) -> None:
        """Runs all jobs. Raises SystemExit with status 2 (bad input) or 1 where one failed."""
        words = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        overrides = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(words)
        self.swept = [one.get_key_element().lstrip("+") for one in overrides if one.is_sweep_override()]
        if self.config.dry_run:
            self._launch(dict(enumerate(combinations(overrides))))
        elif self.config.sweep.trials is None:
            self._grid(dict(enumerate(combinations(overrides))))
        else:
            self._search(overrides)
        if self.errors:
            sys.exit(2 if all(isinstance(error, InputError) for error in self.errors.values()) else 1)

    def _grid(self, jobs: dict[int, Words]) -> None:
        """Runs all combinations. Jobs that the checks refuse fail; where jobs are submitted, nothing is submitted."""
        confs = {number: self._conf(job) for number, job in jobs.items()}
        errors = refused(confs)
        if errors and not self.here:
            said = [f"job {number} ({self._own(jobs[number])}): {error}" for number, error in errors.items()]
            raise InputError("\n".join([*said, "  Nothing was submitted."]))
        usable = {number: job for number, job in jobs.items() if number not in errors}
        folders = {number: run_folder(conf) for number, conf in confs.items()}
        self._refuse_shared_folders(usable, confs, folders)
        metric = one_metric({f"job {number} ({self._own(jobs[number])})": confs[number] for number in usable})
        self._begin(metric, confs[0].sweep.direction)
        self._note(jobs, folders)
        for number, error in errors.items():
            self._failed(number, error, jobs[number])
        try:
            self._launch(usable)
        finally:
            self._show()

    def _search(self, overrides: Sequence[Override]) -> None:
        """Runs trials until there are sweep.trials of them, sweep.parallel at a time; those of a killed search first.

        The metric is that of the search's corners. Raises InputError where no trial could run, where trials would have
        no metric or different ones, and where a searched key changes no result.
        """
        if not getattr(self.config.cluster, "wait", True):
            raise InputError("cluster.wait=false: a search must wait for results to go on. Set cluster.wait=true")
        fixed, spaces = fixed_words(overrides), spaces_of(overrides)
        corners = self._corners(fixed, spaces)
        errors = refused(corners)
        if len(errors) == len(corners):
            raise next(iter(errors.values()))
        metric = one_metric({name: conf for name, conf in corners.items() if name not in errors})
        if metric is None:
            raise InputError(
                "sweep.trials: the run has no scored task and no validation data. Name one in sweep.metric."
            )
        refuse_idle_keys(corners, spaces)
        wanted, parallel = self.config.sweep.trials, self.config.sweep.parallel
        direction = direction_of(metric, self.config.sweep.direction)
        with only_search(self.folder):
            search = Search(self.folder, spaces, direction=direction, seed=self.config.sweep.seed)
            self._begin(metric, direction)
            batch = search.unfinished()
            try:
                while batch or search.asked < wanted:
                    while len(batch) < parallel and search.asked < wanted:
                        batch.append(search.ask(parallel))
                    for number, value in self._results(batch, fixed, metric).items():
                        search.tell(number, value)
                    batch = []
            finally:
                self._show()

    def _results(self, trials: Sequence[Trial], fixed: Words, metric: str) -> dict[int, float | None]:
        """Runs trials; number -> the metric, None for one that failed. Trials of the same values are one run."""
        jobs = {trial.number: [*fixed, *trial.overrides] for trial in trials}
        confs = {number: self._conf(job) for number, job in jobs.items()}
        errors = refused(confs)
        folders = {number: run_folder(conf) for number, conf in confs.items()}
        self._note(jobs, folders)
        for number, error in errors.items():
            self._failed(number, error, jobs[number])
        first: dict[Path, int] = {}  # run folder -> the trial that runs there
        for number in jobs:
            if number not in errors:
                first.setdefault(folders[number], number)
        self._launch({number: jobs[number] for number in first.values()})
        values: dict[int, float | None] = {}
        for number, folder in folders.items():
            ran = number not in errors and first[folder] not in self.errors
            values[number] = metric_value(RunFolder(folder), metric) if ran else None
            if ran and values[number] is None:
                self._failed(number, InputError(f"the run has no {metric}"), jobs[number])
        return values

    def _corners(self, fixed: Words, spaces: Mapping[str, Space]) -> dict[str, RunConf]:
        """Settings that a search may meet: each word and both ends of every space, other keys at the first of theirs.

        Raises InputError, or what Hydra raises, for a value that its setting does not take.
        """
        base = {key: ends_of(space)[0] for key, space in spaces.items()}
        found: dict[str, RunConf] = {}
        for key, space in spaces.items():
            for value in ends_of(space):
                try:
                    words = [f"{one}={word}" for one, word in {**base, key: value}.items()]
                    found[f"{key}={value}"] = self._conf([*fixed, *words])
                except (InputError, HydraException, OmegaConfBaseException) as error:
                    for one, other in spaces.items():
                        if isinstance(other, Span) and not other.whole and one in str(error):
                            raise InputError(
                                f"{error}\n  To search among whole numbers: '{one}=tag(int,interval"
                                f"({other.low:g},{other.high:g}))'"
                            ) from error
                    raise
        return found or {"all": self._conf(fixed)}

    def _conf(self, job: Words) -> RunConf:
        """The settings of one job, unchecked. Raises InputError for an unknown key."""
        return typed(self.context.config_loader.load_sweep_config(self.config, job), RunConf)

    def _begin(self, metric: str | None, direction: str | None) -> None:
        command, trials = shlex.join(["python", *sys.argv]), self.config.sweep.trials
        direction = direction_of(metric or "", direction)
        begin_sweep(self.folder, command, self.swept, metric=metric, direction=direction, trials=trials)

    def _note(self, jobs: Mapping[int, Words], folders: Mapping[int, Path]) -> None:
        """Writes the jobs into sweep.json, before the first of them starts."""
        note_jobs(
            self.folder,
            {number: {"overrides": job, "run": str(folders[number]), "failed": None} for number, job in jobs.items()},
        )

    def _refuse_shared_folders(
        self, jobs: Mapping[int, Words], confs: Mapping[int, RunConf], folders: Mapping[int, Path]
    ) -> None:
        """Raises InputError where two jobs would write to the same run folder."""
        first: dict[Path, int] = {}
        for number, job in jobs.items():
            other = first.setdefault(folders[number], number)
            if other == number:
                continue
            if confs[number].run is not None and settings_digest(confs[other]) != settings_digest(confs[number]):
                why = f"run={confs[number].run} names one folder for all jobs. Leave it away: each gets its own folder."
            else:
                why = (
                    "what they differ in changes no result. Sweep over something else, or give each a folder of its "
                    "own in a command of its own: run=NAME"
                )
            both = f"jobs {other} ({self._own(jobs[other])}) and {number} ({self._own(job)})"
            raise InputError(f"{both} have one run folder, {folders[number]}: {why}")

    def _launch(self, jobs: Mapping[int, Words]) -> None:
        """Gives jobs to the launcher, and notes which failed: here after each one, else of all that it gets at once."""
        for batch in batches(jobs, most=1 if self.here else self.max_batch_size):
            if self.here:
                print(f"job {batch[0]}: {self._own(jobs[batch[0]])}", flush=True)
            results: Sequence[JobReturn] = self.launcher.launch(
                [jobs[number] for number in batch], initial_job_idx=batch[0]
            )
            for number, result in zip(batch, results, strict=True):
                if result.status is JobStatus.FAILED:
                    self._failed(number, result._return_value, jobs[number])

    def _failed(self, number: int, error: Exception, job: Words) -> None:
        self.errors[number] = error
        text = str(error)
        if not isinstance(error, InputError):
            text = f"{type(error).__name__}: {error}"
            traceback.print_exception(error)
        print(f"error: job {number} ({self._own(job)}): {text}", file=sys.stderr)
        if not self.config.dry_run:
            note_jobs(self.folder, {number: {"failed": text}})

    def _own(self, job: Words) -> str:
        """What a job differs in from the others."""
        return " ".join(word for word in job if word.partition("=")[0].lstrip("+") in self.swept)

    def _show(self) -> None:
        print(sweep_text(write_sweep(self.folder, jobs_in_queue())), flush=True)


def fixed_words(overrides: Sequence[Override]) -> Words:
    """What every job has."""
    return [
        f"{one.get_key_element()}={one.get_value_element_as_str()}" if not one.is_delete() else one.input_line or ""
        for one in overrides
        if not one.is_sweep_override()
    ]


def combinations(overrides: Sequence[Override]) -> list[Words]:
    """The words of every job of a grid; the last key varies fastest. Raises InputError for an interval."""
    values: dict[str, Words] = {}  # a key that is given twice: the last one counts
    for override in overrides:
        key = override.get_key_element()
        if override.is_interval_sweep():
            raise InputError(
                f"{key}: an interval has no list of values. Search in it with sweep.trials=N, or name the values: "
                f"{key}=VALUE,VALUE"
            )
        sweeps = override.is_sweep_override()
        values[key] = [f"{key}={one}" for one in listed_values(override)] if sweeps else fixed_words([override])
    return [list(job) for job in itertools.product(*values.values())]


def refused(confs: Mapping[Any, RunConf]) -> dict[Any, InputError]:
    """The jobs whose settings cannot be used, and why."""
    found: dict[Any, InputError] = {}
    for name, conf in confs.items():
        try:
            validate(conf)
        except InputError as error:
            found[name] = error
    return found


def one_metric(confs: Mapping[str, RunConf]) -> str | None:
    """What all these jobs (name -> settings) are compared by. Raises InputError where they differ in that."""
    first: dict[str | None, str] = {}
    for name, conf in confs.items():
        first.setdefault(metric_of(conf), name)
    if len(first) > 1:
        each = "; ".join(f"{name}: {metric or 'nothing'}" for metric, name in first.items())
        raise InputError(
            f"The jobs would be compared by different things ({each}). Name one in sweep.metric that all have, "
            "e.g. sweep.metric=validation_loss"
        )
    return next(iter(first), None)


def refuse_idle_keys(corners: Mapping[str, RunConf], spaces: Mapping[str, Space]) -> None:
    """Raises InputError for a searched key that changes no result, such as `engine`."""
    for key, space in spaces.items():
        ends = ends_of(space)
        if len(set(ends)) > 1 and len({settings_digest(corners[f"{key}={end}"]) for end in ends}) == 1:
            raise InputError(
                f"{key} changes no result: its trials would be one and the same run. Leave it out of the search."
            )


def batches(numbers: Iterable[int], most: int | None = None) -> list[list[int]]:
    """Runs of at most `most` consecutive numbers: a launcher counts on from the first one."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and found[-1][-1] == number - 1 and len(found[-1]) != most:
            found[-1].append(number)
        else:
            found.append([number])
    return found
