"""The results of a sweep: one row a job, from what the run folders hold at this moment."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.config.run_folder import is_finished
from mmadapter.config.sweep import VALIDATION_LOSS, direction_of
from mmadapter.evaluation.table import format_table
from mmadapter.files import write_atomically
from mmadapter.runs.listing import Queue, job_state
from mmadapter.runs.objective import all_scores, main_scores, value_of
from mmadapter.runs.run_files import RunFiles, read_run
from mmadapter.runs.state import RunState
from mmadapter.runs.sweep_file import read_sweep, run_of
from mmadapter.terminal import number_text

SEED = "seed"


@dataclass
class SweepJob:
    """One job; its numbers are those that its files hold so far."""

    number: int
    settings: dict[str, str]  # key -> value of all its overrides
    state: RunState
    run: RunFiles

    @property
    def finished(self) -> bool:
        return self.state.state == "finished"

    @property
    def metrics(self) -> dict[str, Mapping[str, Any]]:
        own = self.run.config.get("evaluate") or ()
        return {name: one.metrics for name, one in self.run.evaluations.items() if name in own}


@dataclass
class Sweep:
    """All jobs of one sweep, and what they are compared by."""

    folder: Path
    command: str
    created: str
    jobs: list[SweepJob]
    keys: list[str]  # the swept settings, in the order of the command
    metric: str | None
    direction: str
    trials: int | None  # of a search

    def value(self, job: SweepJob) -> float | None:
        """The metric of a finished job; a run that goes on has none yet."""
        return value_of(job.run, self.metric) if job.finished else None

    @property
    def valued(self) -> list[tuple[SweepJob, float]]:
        return [(job, value) for job in self.jobs if (value := self.value(job)) is not None]

    @property
    def best(self) -> SweepJob | None:
        """The finished job with the best value; of equals the first."""
        sign = 1 if self.direction == "minimize" else -1
        return min(self.valued, key=lambda one: sign * one[1], default=(None, 0.0))[0]

    @property
    def score_names(self) -> list[str]:
        return list(dict.fromkeys(name for job in self.jobs for name in main_scores(job.metrics)))


def read_results(folder: Path, queue: Queue = None) -> Sweep:
    """Reads a sweep and its runs. Raises InputError where `folder` holds no sweep."""
    content = read_sweep(folder)
    jobs = []
    for job in content["jobs"]:
        run = run_of(folder, job)
        files = RunFiles(Path()) if run is None else read_run(run, whole=False)
        jobs.append(
            SweepJob(job["number"], settings_of(job.get("overrides") or []), job_state(folder, job, queue), files)
        )
    metric, swept = content.get("metric") or VALIDATION_LOSS, content.get("swept")
    return Sweep(
        folder,
        content.get("command", ""),
        content.get("created", ""),
        jobs,
        differing_keys(jobs) if swept is None else [key.lstrip("+~") for key in swept],
        metric,
        direction_of(metric, content.get("direction")),
        content.get("trials"),
    )


def settings_of(overrides: list[str]) -> dict[str, str]:
    """Key -> value of command line words; `~key` has the value "(removed)"."""
    pairs = (override.partition("=") for override in overrides)
    return {key.lstrip("+~"): value if sign else "(removed)" for key, sign, value in pairs}


def differing_keys(jobs: list[SweepJob]) -> list[str]:
    """What an older sweep.json, which does not name the swept keys, lets one guess: of a single job all."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.settings))
    return [key for key in keys if len(jobs) == 1 or len({job.settings.get(key) for job in jobs}) > 1]


def write_sweep(folder: Path, queue: Queue = None) -> Sweep:
    """Writes FOLDER/sweep.csv and FOLDER/sweep.html. Works on half-finished sweeps.

    Jobs that end at the same moment write them, too: each writer looks again, so the last one has seen all.
    """
    from mmadapter.reports.sweep import page_of

    seen = finished_runs(folder)
    while True:
        sweep = read_results(folder, queue)
        write_atomically(folder / "sweep.csv", csv_of(sweep))
        write_atomically(folder / "sweep.html", page_of(sweep))
        if (now := finished_runs(folder)) == seen:
            return sweep
        seen = now


def finished_runs(folder: Path) -> int:
    runs = [run_of(folder, job) for job in read_sweep(folder)["jobs"]]
    return sum(is_finished(run) for run in runs if run is not None)


def csv_of(sweep: Sweep) -> str:
    """Every number that there is; an empty cell where there is none."""
    rows = [csv_row(sweep, job) for job in sweep.jobs]
    names = list(dict.fromkeys(name for row in rows for name in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def csv_row(sweep: Sweep, job: SweepJob) -> dict[str, Any]:
    """One line of sweep.csv: the job, what it differs in, its state, its scores, what it cost."""
    summary, validation = job.run.summary, job.run.validation
    training, peak = summary.get("training") or {}, summary.get("peak") or {}
    return {
        "job": job.number,
        **{key: job.settings.get(key, "") for key in sweep.keys},
        "state": job.state.state,
        "reason": job.state.reason or "",
        "metric": sweep.metric,
        "value": or_empty(sweep.value(job)),
        **all_scores(job.metrics),
        "best_validation_loss": or_empty(job.run.best_validation_loss),
        "final_validation_loss": or_empty(validation[-1]["loss"] if validation else None),
        "step": or_empty(job.state.step),
        "steps": or_empty(job.state.steps),
        "training_seconds": or_empty(training.get("seconds", job.state.seconds)),
        "wall_seconds": or_empty(summary.get("wall_seconds")),
        "peak_host_bytes": or_empty(peak.get("host_bytes")),
        "peak_gpu_bytes": or_empty(peak.get("gpu_bytes")),
        "slurm_job": job.state.slurm_job or "",
        "run": str(job.state.folder),
    }


def or_empty(value: Any) -> Any:
    return "" if value is None else value


@dataclass
class OverSeeds:
    """The values of one setting over the seeds it was run with."""

    settings: dict[str, str]  # of the swept keys without the seed
    values: list[float]  # of finished jobs
    jobs: int

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def deviation(self) -> float | None:
        """The sample's standard deviation; None for less than two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def over_seeds(sweep: Sweep) -> list[OverSeeds]:
    """One entry a setting where `seed` is swept, in the order of the jobs; else none."""
    if SEED not in sweep.keys:
        return []
    others = [key for key in sweep.keys if key != SEED]
    groups: dict[tuple[str, ...], OverSeeds] = {}
    for job in sweep.jobs:
        settings = {key: job.settings.get(key, "") for key in others}
        group = groups.setdefault(tuple(settings.values()), OverSeeds(settings, [], 0))
        group.jobs += 1
        if (value := sweep.value(job)) is not None:
            group.values.append(value)
    return list(groups.values())


def sweep_text(sweep: Sweep) -> str:
    """The sweep for the terminal: jobs, mean over seeds, the best, the failures, the files."""
    cells = [
        [str(job.number), *(job.settings.get(key, "-") for key in sweep.keys), job.state.state, shown(sweep.value(job))]
        for job in sweep.jobs
    ]
    lines = [format_table(["job", *sweep.keys, "state", sweep.metric or "value"], cells)] if cells else ["no jobs"]
    for group in over_seeds(sweep):
        named = " ".join(f"{key}={value}" for key, value in group.settings.items()) or "all"
        lines.append(f"over seeds: {named}: {mean_text(group)}")
    if (best := sweep.best) is not None:
        settings = " ".join(f"{key}={best.settings.get(key)}" for key in sweep.keys)
        lines.append(f"best {sweep.metric} ({sweep.direction}): job {best.number} {settings}, {best.state.folder}")
    lines += [f"job {job.number} {job.state.state}: {job.state.reason}" for job in sweep.jobs if job.state.reason]
    lines.append(f"table and plots: {sweep.folder / 'sweep.html'}, {sweep.folder / 'sweep.csv'}")
    return "\n".join(lines)


def mean_text(group: OverSeeds) -> str:
    """ "61.2 ± 0.8, 60.3 to 62 (3 of 3 seeds)"."""
    count = f"({len(group.values)} of {group.jobs} seeds)"
    if group.mean is None:
        return f"no value yet {count}"
    spread = "" if group.deviation is None else f" ± {group.deviation:.2g}"
    reach = f", {number_text(min(group.values))} to {number_text(max(group.values))}" if spread else ""
    return f"{number_text(group.mean)}{spread}{reach} {count}"


def shown(value: float | None) -> str:
    return "-" if value is None else number_text(value)
