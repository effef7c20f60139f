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

from mmadapter.errors import InputError
from mmadapter.runs.state import RunFolder, jobs_in_queue
from mmadapter.runs.sweep import begin_sweep, note_jobs
from mmadapter.sweeps.job import Job, PlannedRun, job_of
from mmadapter.sweeps.results import sweep_text, write_sweep
from mmadapter.sweeps.search import Search, Space, Span, ends_of, listed_values, only_search, spaces_of

Words = list[str]  # the command line of one job: key=value


class Sweeps(Sweeper):
    """Makes jobs of the command line, gives them to the launcher, writes down what became of them."""

    config: DictConfig

    def __init__(self, max_batch_size: int | None = None, params: dict[str, str] | None = None) -> None:
        """`max_batch_size`: jobs given to the launcher at a time; `params`: sweeps that a config file names."""
        self.max_batch_size, self.params = max_batch_size, params or {}
        self.errors: dict[int, Exception] = {}  # by job number

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config, self.context, self.task_function = config, hydra_context, task_function
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
        if self.config.sweep.trials is None or self.config.dry_run:
            self._grid([self._job(number, job) for number, job in enumerate(combinations(overrides))])
        else:
            self._search(fixed_words(overrides), spaces_of(overrides))
        if self.errors:
            sys.exit(2 if all(isinstance(error, InputError) for error in self.errors.values()) else 1)

    def _grid(self, jobs: list[Job]) -> None:
        """Runs all combinations. Jobs that the checks refuse fail; where jobs are submitted, nothing is submitted."""
        if self.config.dry_run:
            return self._launch(jobs)
        refused = [job for job in jobs if job.run.error is not None]
        if refused and not self.here:
            said = [f"job {job.number} ({self._own(job)}): {job.run.error}" for job in refused]
            raise InputError("\n".join([*said, "  Nothing was submitted."]))
        usable = [job for job in jobs if job.run.error is None]
        self._refuse_shared_folders(usable)
        metric = one_metric({f"job {job.number} ({self._own(job)})": job.run.metric for job in usable})
        self._begin(metric, (usable or jobs)[0].run.direction)
        self._note(jobs)
        try:
            self._launch(usable)
        finally:
            self._show()

    def _search(self, fixed: Words, spaces: Mapping[str, Space]) -> None:
        """Runs trials until there are sweep.trials of them, sweep.parallel at a time; those of a killed search first.

        The metric is that of the search's corners. Raises InputError where no trial could run, where trials would have
        no metric or different ones, and where a searched key changes no result.
        """
        if not getattr(self.config.cluster, "wait", True):
            raise InputError("cluster.wait=false: a search must wait for results to go on. Set cluster.wait=true")
        corners = self._corners(fixed, spaces)
        usable = {name: run for name, run in corners.items() if run.error is None}
        if not usable:
            raise next(run.error for run in corners.values() if run.error is not None)
        metric = one_metric({name: run.metric for name, run in usable.items()})
        if metric is None:
            raise InputError("sweep.trials: the run has no scored task and no validation data: set sweep.metric.")
        refuse_idle_keys(corners, spaces)
        direction = next(iter(usable.values())).direction
        wanted, parallel = self.config.sweep.trials, self.config.sweep.parallel
        with only_search(self.folder):
            search = Search(self.folder, spaces, direction=direction, seed=self.config.sweep.seed)
            self._begin(metric, direction)
            batch = search.unfinished()
            try:
                while batch or search.asked < wanted:
                    while len(batch) < parallel and search.asked < wanted:
                        batch.append(search.ask(parallel))
                    jobs = [self._job(trial.number, [*fixed, *trial.overrides]) for trial in batch]
                    for number, value in self._results(jobs, metric).items():
                        search.tell(number, value)
                    batch = []
            finally:
                self._show()

    def _results(self, jobs: list[Job], metric: str) -> dict[int, float | None]:
        """Runs trials; number -> the metric, None for one that failed. Trials of the same values are one run."""
        self._note(jobs)
        first: dict[Path, Job] = {}  # run folder -> the trial that runs there
        for job in jobs:
            if job.run.error is None:
                first.setdefault(job.run.folder, job)
        self._launch(list(first.values()))
        values: dict[int, float | None] = {}
        for job in jobs:
            ran = job.run.error is None and first[job.run.folder].number not in self.errors
            values[job.number] = RunFolder(job.run.folder).metric(metric) if ran else None
            if ran and values[job.number] is None:
                self._failed(job, InputError(f"the run has no {metric}"))
        return values

    def _corners(self, fixed: Words, spaces: Mapping[str, Space]) -> dict[str, PlannedRun]:
        """Runs that a search may meet: each word and both ends of every space, other keys at the first of theirs.

        Raises InputError, or what Hydra raises, for a value that its setting does not take.
        """
        base = {key: ends_of(space)[0] for key, space in spaces.items()}
        found: dict[str, PlannedRun] = {}
        for key, space in spaces.items():
            for value in ends_of(space):
                words = [f"{one}={word}" for one, word in {**base, key: value}.items()]
                try:
                    found[f"{key}={value}"] = self._job(0, [*fixed, *words]).run
                except (InputError, HydraException, OmegaConfBaseException) as error:
                    for name, other in spaces.items():
                        plain = name.lstrip("+")
                        if isinstance(other, Span) and not other.whole and plain in str(error):
                            whole = f"'{plain}=tag(int,interval({other.low:g},{other.high:g}))'"
                            raise InputError(f"{error}\n  To search among whole numbers: {whole}") from error
                    raise
        return found or {"all": self._job(0, fixed).run}

    def _job(self, number: int, words: Words) -> Job:
        return job_of(number, words, self.task_function, self.context, self.config)

    def _begin(self, metric: str | None, direction: str) -> None:
        command, trials = shlex.join(["python", *sys.argv]), self.config.sweep.trials
        begin_sweep(self.folder, command, self.swept, metric=metric, direction=direction, trials=trials)

    def _note(self, jobs: list[Job]) -> None:
        """Writes jobs into sweep.json before the first of them starts; those that the checks refuse have failed."""
        facts = {job.number: {"overrides": job.words, "run": str(job.run.folder), "failed": None} for job in jobs}
        note_jobs(self.folder, facts)
        for job in jobs:
            if job.run.error is not None:
                self._failed(job, job.run.error)

    def _refuse_shared_folders(self, jobs: list[Job]) -> None:
        """Raises InputError where two jobs would write to the same run folder."""
        first: dict[Path, Job] = {}
        for job in jobs:
            other = first.setdefault(job.run.folder, job)
            if other is job:
                continue
            if self.config.run is not None and other.run.digest != job.run.digest:
                why = f"run={self.config.run} names one folder for all jobs. Leave it away: each gets its own folder."
            else:
                why = (
                    "what they differ in changes no result. Sweep over something else, or give each a folder of its "
                    "own in a command of its own: run=NAME"
                )
            both = f"jobs {other.number} ({self._own(other)}) and {job.number} ({self._own(job)})"
            raise InputError(f"{both} have one run folder, {job.run.folder}: {why}")

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
        text = str(error)
        if not isinstance(error, InputError):
            text = f"{type(error).__name__}: {error}"
            traceback.print_exception(error)
        print(f"error: job {job.number} ({self._own(job)}): {text}", file=sys.stderr)
        if not self.config.dry_run:
            note_jobs(self.folder, {job.number: {"failed": text}})

    def _own(self, job: Job) -> str:
        """What a job differs in from the others."""
        return " ".join(word for word in job.words if word.partition("=")[0].lstrip("+") in self.swept)

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
            plain = key.lstrip("+")
            raise InputError(
                f"{plain}: an interval has no list of values. Search in it with sweep.trials=N, or name the values: "
                f"{plain}=VALUE,VALUE"
            )
        sweeps = override.is_sweep_override()
        values[key] = [f"{key}={one}" for one in listed_values(override)] if sweeps else fixed_words([override])
    return [list(job) for job in itertools.product(*values.values())]


def one_metric(metrics: Mapping[str, str | None]) -> str | None:
    """What all these jobs (name -> metric) are compared by. Raises InputError where they differ in that."""
    first: dict[str | None, str] = {}
    for name, metric in metrics.items():
        first.setdefault(metric, name)
    if len(first) > 1:
        each = "; ".join(f"{name}: {metric or 'nothing'}" for metric, name in first.items())
        raise InputError(
            f"The jobs would be compared by different things ({each}). Name one in sweep.metric that all have, "
            "e.g. sweep.metric=validation_loss"
        )
    return next(iter(first), None)


def refuse_idle_keys(corners: Mapping[str, PlannedRun], spaces: Mapping[str, Space]) -> None:
    """Raises InputError for a searched key that changes no result, such as `engine`."""
    for key, space in spaces.items():
        ends = ends_of(space)
        if len(set(ends)) > 1 and len({corners[f"{key}={end}"].digest for end in ends}) == 1:
            raise InputError(
                f"{key.lstrip('+')} changes no result: its trials would be one and the same run. "
                "Leave it out of the search."
            )


def batches(jobs: list[Job], most: int | None = None) -> list[list[Job]]:
    """Jobs of consecutive numbers, at most `most` at a time: a launcher counts on from the first one."""
    found: list[list[Job]] = []
    for job in jobs:
        if found and found[-1][-1].number == job.number - 1 and len(found[-1]) != most:
            found[-1].append(job)
        else:
            found.append([job])
    return found
