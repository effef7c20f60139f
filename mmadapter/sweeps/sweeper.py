"""`mmadapter train -m`: every combination of the values named, or a search (sweep.trials=N).

Works with every launcher. What it adds to Hydra's own sweeper: one folder a sweep, which the same command finds again;
all jobs are checked before the first one starts; sweep.json from the start; a failed job loses no other; sweep.csv and
sweep.html at the end, also of a sweep that was interrupted.
"""

from __future__ import annotations

import itertools
import logging
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

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

from mmadapter.errors import InputError, printable, text_of
from mmadapter.files import locked
from mmadapter.runs.state import RunFolder, jobs_in_queue
from mmadapter.runs.sweep import begin_sweep, note_jobs
from mmadapter.sweeps.job import Job, job_of
from mmadapter.sweeps.results import sweep_text, write_sweep
from mmadapter.terminal import own_command

LOCK_FILE = ".searching"


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
        swept = [one for one in overrides if one.is_sweep_override()]
        self.swept = [one.get_key_element().lstrip("+") for one in swept]
        for key, one in zip(self.swept, swept, strict=True):
            if not one.is_interval_sweep() and not list(one.sweep_string_iterator()):
                raise InputError(f"{key}: this range holds no value: {one.input_line}")
        if self.config.sweep.trials is None or self.config.dry_run:
            self._grid([self._job(number, words) for number, words in enumerate(combinations(overrides))])
        else:
            self._search(overrides)
        if self.errors:
            sys.exit(2 if all(isinstance(error, InputError) for error in self.errors.values()) else 1)

    def _grid(self, jobs: list[Job]) -> None:
        """Runs all combinations. Jobs that the checks refuse fail; where jobs are submitted, nothing is submitted."""
        if self.config.dry_run:
            return self._launch(jobs)
        refused = [job for job in jobs if job.error is not None]
        if refused and not self.here:
            said = [f"job {job.number} ({self._own(job)}): {job.error}" for job in refused]
            raise InputError("\n".join([*said, "  Nothing was submitted."]))
        usable = [job for job in jobs if job.error is None]
        self._refuse_shared_folders(usable)
        metric = one_metric({f"job {job.number} ({self._own(job)})": job for job in usable})
        self._begin(metric, (usable or jobs)[0].direction)
        self._note(jobs)
        try:
            self._launch(usable)
        finally:
            self._show()

    def _search(self, overrides: Sequence[Override]) -> None:
        """Runs trials until there are sweep.trials of them, sweep.parallel at a time; those of a killed search first.

        Raises InputError where no trial could run, where a setting does not take its values, and where trials would
        have no metric or different ones.
        """
        try:  # Optuna is an extra, and takes a second to import
            from optuna.distributions import FloatDistribution

            from mmadapter.sweeps.search import Search, corners_of, spaces_of
        except ImportError as error:
            raise InputError(
                "sweep.trials searches with Optuna, which is not installed: pip install 'optuna>=4'. Without it, "
                "leave sweep.trials away and name the values: optimizer.base_lr=3e-3,9e-3"
            ) from error
        if not self.config.cluster.wait:
            raise InputError("cluster.wait=false: a search must wait for results to go on. Set cluster.wait=true")

        # What it searches in, and the metric: that of the runs at the ends of all spaces.
        fixed, spaces = fixed_words(overrides), spaces_of(overrides)
        corners: dict[str, Job] = {}
        for name, words in corners_of(spaces).items():
            try:
                corners[name] = self._job(0, [*fixed, *words])
            except (InputError, HydraException, OmegaConfBaseException) as error:
                for key, space in spaces.items():
                    plain = key.lstrip("+")
                    if isinstance(space, FloatDistribution) and plain in str(error):
                        whole = f"'{plain}=tag(int,interval({space.low:g},{space.high:g}))'"
                        raise InputError(f"{error}\n  To search among whole numbers: {whole}") from error
                raise
        usable = {name: job for name, job in corners.items() if job.error is None}
        if not usable:
            raise next(job.error for job in corners.values() if job.error is not None)
        metric = one_metric(usable)
        if metric is None:
            raise InputError("sweep.trials: the run has no scored task and no validation data: set sweep.metric.")

        # The trials.
        wanted, parallel = self.config.sweep.trials, self.config.sweep.parallel
        busy = f"Another process goes on with the search in {self.folder}. Wait for it, or end it."
        with locked(self.folder / LOCK_FILE, busy):
            direction = next(iter(usable.values())).direction
            self._begin(metric, direction)
            search = Search(self.folder, spaces, direction=direction, seed=self.config.sweep.seed)
            trials = search.unfinished()
            try:
                while trials or search.asked < wanted:
                    while len(trials) < parallel and search.asked < wanted:
                        number, words = search.ask(parallel)
                        trials[number] = words
                    jobs = [self._job(number, [*fixed, *words]) for number, words in trials.items()]
                    for number, value in self._results(jobs, metric).items():
                        search.tell(number, value)
                    trials = {}
            finally:
                self._show()

    def _results(self, jobs: list[Job], metric: str) -> dict[int, float | None]:
        """Runs trials; number -> the metric, None for one that failed. Trials of the same values are one run."""
        self._note(jobs)
        first: dict[Path, Job] = {}  # run folder -> the trial that runs there
        for job in jobs:
            if job.error is None:
                first.setdefault(job.folder, job)
        self._launch(list(first.values()))
        values: dict[int, float | None] = {}
        for job in jobs:
            ran = job.error is None and first[job.folder].number not in self.errors
            values[job.number] = RunFolder(job.folder).metric(metric) if ran else None
            if ran and values[job.number] is None:
                self._failed(job, InputError(f"the run has no {metric}"))
        return values

    def _job(self, number: int, words: list[str]) -> Job:
        return job_of(number, words, self.context, self.config)

    def _begin(self, metric: str | None, direction: str) -> None:
        """Writes sweep.json."""
        facts = {"metric": metric, "direction": direction, "trials": self.config.sweep.trials}
        begin_sweep(self.folder, own_command(), self.swept, **facts)

    def _note(self, jobs: list[Job]) -> None:
        """Writes jobs into sweep.json before the first of them starts; those that the checks refuse have failed."""
        facts = {job.number: {"overrides": job.words, "run": str(job.folder), "failed": None} for job in jobs}
        note_jobs(self.folder, facts)
        for job in jobs:
            if job.error is not None:
                self._failed(job, job.error)

    def _refuse_shared_folders(self, jobs: list[Job]) -> None:
        """Raises InputError where two jobs would write to the same run folder."""
        why = (
            "what they differ in changes no result. Sweep over something else, or give each a folder of its own in a "
            "command of its own: run=NAME"
        )
        if self.config.run is not None:
            why = (
                f"run={self.config.run} names one folder for all jobs. Leave it away: jobs of different results get "
                "folders of their own."
            )
        first: dict[Path, Job] = {}
        for job in jobs:
            if (other := first.setdefault(job.folder, job)) is not job:
                both = f"jobs {other.number} ({self._own(other)}) and {job.number} ({self._own(job)})"
                raise InputError(f"{both} have one run folder, {job.folder}: {why}")

    def _launch(self, jobs: list[Job]) -> None:
        """Gives jobs to the launcher, and notes which failed: here after each one, else of all that it gets at once."""
        for batch in batches(jobs, most=1 if self.here else self.max_batch_size):
            if self.here:
                print(f"job {batch[0].number}: {self._own(batch[0])}", flush=True)
            words, start = [job.words for job in batch], batch[0].number
            results: Sequence[JobReturn] = self.launcher.launch(words, initial_job_idx=start)
            for job, result in zip(batch, results, strict=True):
                if result.status is JobStatus.FAILED:
                    self._failed(job, result._return_value)

    def _failed(self, job: Job, error: Exception) -> None:
        self.errors[job.number] = error
        text = text_of(error)
        if not isinstance(error, InputError):
            traceback.print_exception(error)
        print(printable(f"error: job {job.number} ({self._own(job)}): {text}"), file=sys.stderr)
        if not self.config.dry_run:
            note_jobs(self.folder, {job.number: {"failed": text}})

    def _own(self, job: Job) -> str:
        """What a job differs in from the others."""
        return " ".join(word for word in job.words if word.partition("=")[0].lstrip("+") in self.swept)

    def _show(self) -> None:
        print(printable(sweep_text(write_sweep(self.folder, jobs_in_queue()))), flush=True)


def fixed_words(overrides: Sequence[Override]) -> list[str]:
    """What every job has."""
    return [
        f"{one.get_key_element()}={one.get_value_element_as_str()}" if not one.is_delete() else one.input_line or ""
        for one in overrides
        if not one.is_sweep_override()
    ]


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """The words of every job of a grid; the last key varies fastest. Raises InputError for an interval."""
    values: dict[str, list[str]] = {}  # a key that is given twice: the last one counts
    for override in overrides:
        key = override.get_key_element()
        if override.is_interval_sweep():
            plain = key.lstrip("+")
            raise InputError(
                f"{plain}: an interval has no list of values. Search in it with sweep.trials=N, or name the values: "
                f"{plain}=VALUE,VALUE"
            )
        if override.is_sweep_override():
            values[key] = [f"{key}={one}" for one in override.sweep_string_iterator()]
        else:
            values[key] = fixed_words([override])
    return [list(job) for job in itertools.product(*values.values())]


def one_metric(jobs: Mapping[str, Job]) -> str | None:
    """What all these jobs (by name) are compared by. Raises InputError where they differ in that."""
    first: dict[str | None, str] = {}
    for name, job in jobs.items():
        first.setdefault(job.metric, name)
    if len(first) > 1:
        each = "; ".join(f"{name}: {metric or 'nothing'}" for metric, name in first.items())
        raise InputError(
            f"The jobs would be compared by different things ({each}). Name one in sweep.metric that all have, "
            "e.g. sweep.metric=validation_loss"
        )
    return next(iter(first), None)


def batches(jobs: list[Job], most: int | None = None) -> list[list[Job]]:
    """Jobs of consecutive numbers, at most `most` at a time: a launcher counts on from the first one."""
    found: list[list[Job]] = []
    for job in jobs:
        if not found or found[-1][-1].number != job.number - 1 or len(found[-1]) == most:
            found.append([])
        found[-1].append(job)
    return found
