"""A sweep's folder: sweep.json (its command and its jobs; docs/formats.md names the keys) and the results of the jobs.

sweep.json is written by the command that runs the sweep, never by a job.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from mmadapter.errors import InputError
from mmadapter.files import LeftOut, as_written, write_json
from mmadapter.runs.state import Queue, Record, RunFolder, RunState, state_of
from mmadapter.sweeps.settings import VALIDATION_LOSS
from mmadapter.terminal import number_text

SWEEP_FILE = "sweep.json"
SEED = "seed"


# --- the file ---


class NotedJob(TypedDict):
    number: int


class JobFacts(NotedJob, total=False):
    overrides: list[str] | None
    run: str | None
    failed: str | None
    slurm_job: str | None
    slurm_run: str | None
    slurm_log: str | None


class WithJobs(TypedDict):
    jobs: list[JobFacts]


class SweepFile(WithJobs, total=False):
    """sweep.json."""

    command: str
    created: str
    swept: list[str] | None
    metric: str | None
    direction: str | None
    trials: int | None


def sweeps_in(folder: Path) -> list[Path]:
    """The folder itself, or those in its sweeps/ (or beside it, where it is sweeps/)."""
    if (folder / SWEEP_FILE).is_file():
        return [folder]
    return sorted(file.parent for name in ("sweeps/*", "*") for file in folder.glob(f"{name}/{SWEEP_FILE}"))


def read_sweep(folder: Path) -> Record:
    """The content of FOLDER/sweep.json. Raises InputError where there is none, and where it is damaged."""
    file = folder / SWEEP_FILE
    if not file.is_file():
        raise InputError(
            f"{folder} is no sweep: there is no {SWEEP_FILE} in it. Sweeps are in RUNS_ROOT/sweeps; "
            "mmadapter runs lists them."
        )
    try:
        left_out = LeftOut()
        content: Any = as_written(json.loads(file.read_text(encoding="utf-8")), SweepFile, SWEEP_FILE, left_out)
        if wrong := left_out.lines():
            raise ValueError("; ".join(wrong))
        names = [job.get(name) or "" for job in content["jobs"] for name in ("run", "slurm_run", "slurm_log")]
        if any(b"\0" in os.fsencode(name) for name in names):  # half of a character raises a ValueError of its own
            raise ValueError("the name of a run holds the character NUL")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{file} is damaged: {type(error).__name__}: {error}. "
            'It should hold {"jobs": [{"number": 0, ...}, ...], ...}. '
            "Delete it and give the sweep's command again: that writes it anew, and finished runs are found again. "
            "SLURM jobs of this sweep that still wait or run are noted in this file alone: look at `squeue --me` "
            "first, and end them with scancel."
        ) from error
    found: Record = content
    return found


def begin_sweep(folder: Path, command: str, swept: Sequence[str], **facts: Any) -> None:
    """Writes the sweep's file, or updates the one that is there; `swept`: the keys that differ between jobs."""
    known = read_sweep(folder) if (folder / SWEEP_FILE).is_file() else {}
    created = known.get("created", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    content = {"jobs": [], **known, "command": command, "created": created, "swept": list(swept), **facts}
    write_json(folder / SWEEP_FILE, content)


def note_jobs(folder: Path, jobs: Mapping[int, Record]) -> None:
    """Adds jobs, or facts about them, by number; what else is known of a job (its SLURM job) stays."""
    content = read_sweep(folder)
    known = {job["number"]: job for job in content["jobs"]}
    for number, facts in jobs.items():
        before = known.get(number, {"number": number, "slurm_job": None, "failed": None})
        known[number] = {**before, **facts}
    write_json(folder / SWEEP_FILE, {**content, "jobs": [known[number] for number in sorted(known)]})


def located_run(folder: Path, run: str | None) -> Path | None:
    """A run folder that a sweep names. A relative one counts from where the command is given, else from the sweep.

    The second way finds it when the command is given from elsewhere: RUNS_ROOT/sweeps/NAME and RUNS_ROOT/RUN.
    """
    if not run:
        return None
    path = Path(run)
    beside = folder.resolve().parents[1] / path.name
    return path if path.is_absolute() or path.exists() or not beside.exists() else beside


# --- the results ---


@dataclass
class SweepJob:
    """One job, as far as its files tell."""

    number: int
    settings: dict[str, str]  # key -> value of all its overrides
    state: RunState
    run: RunFolder
    value: float | None  # the sweep's metric; a run that goes on has none yet

    @property
    def finished(self) -> bool:
        return self.state.state == "finished"


@dataclass
class OverSeeds:
    """The values of one setting over the seeds it was run with."""

    settings: dict[str, str]  # of the swept keys without the seed
    values: list[float]  # of finished jobs
    jobs: int

    @property
    def text(self) -> str:
        """Mean, sample's standard deviation, and range: "61.2 ± 0.8, 60.3 to 62 (3 of 3 seeds)"."""
        count = f"({len(self.values)} of {self.jobs} seeds)"
        if not self.values:
            return f"no value yet {count}"
        mean = number_text(statistics.fmean(self.values))
        if len(self.values) == 1:
            return f"{mean} {count}"
        low, high = number_text(min(self.values)), number_text(max(self.values))
        return f"{mean} ± {statistics.stdev(self.values):.2g}, {low} to {high} {count}"


@dataclass
class Sweep:
    """All jobs of one sweep, and what they are compared by."""

    folder: Path
    command: str
    created: str
    jobs: list[SweepJob]
    keys: list[str]  # the swept settings, in the order of the command
    metric: str
    direction: str  # "minimize" or "maximize"
    trials: int | None  # of a search

    @property
    def valued(self) -> list[tuple[SweepJob, float]]:
        return [(job, job.value) for job in self.jobs if job.value is not None]

    @property
    def best(self) -> SweepJob | None:
        """The finished job with the best value; of equals the one with the lowest validation loss. None: none is."""
        leading = self._leading()
        return leading[0] if len(leading) == 1 else None

    @property
    def tied(self) -> list[SweepJob]:
        """The jobs that share the best value and its lowest validation loss, where they are several."""
        leading = self._leading()
        return leading if len(leading) > 1 else []

    @property
    def best_value(self) -> float | None:
        """The metric of the best job, or of those that share it."""
        choose = min if self.direction == "minimize" else max
        return choose((value for _, value in self.valued), default=None)

    def _leading(self) -> list[SweepJob]:
        leading = [job for job, value in self.valued if value == self.best_value]
        losses = [math.inf if (loss := job.run.best_validation_loss) is None else loss for job in leading]
        return [job for job, loss in zip(leading, losses, strict=True) if loss == min(losses)]

    @property
    def score_names(self) -> list[str]:
        return list(dict.fromkeys(name for job in self.jobs for name in job.run.scores(main=True)))

    @property
    def over_seeds(self) -> list[OverSeeds]:
        """One entry a setting where `seed` is swept, in the order of the jobs; else none."""
        if SEED not in self.keys:
            return []
        groups: dict[tuple[str, ...], OverSeeds] = {}
        for job in self.jobs:
            settings = {key: job.settings.get(key, "") for key in self.keys if key != SEED}
            group = groups.setdefault(tuple(settings.values()), OverSeeds(settings, [], 0))
            group.jobs += 1
            if job.value is not None:
                group.values.append(job.value)
        return list(groups.values())


def read_results(folder: Path, queue: Queue = None) -> Sweep:
    """Reads a sweep and its runs; jobs that never started are among them.

    Raises InputError where `folder` holds no sweep, or a damaged one.
    """
    content = read_sweep(folder)
    metric = content.get("metric") or VALIDATION_LOSS
    jobs = []
    for job in content["jobs"]:
        run = RunFolder(located_run(folder, job.get("run")) or folder / f"job-{job['number']}")
        state = state_of(run, slurm_job=job.get("slurm_job"), queue=queue)
        state.sweep, state.job = folder.name, job["number"]
        if job.get("failed") and state.state in ("never started", "running", "killed"):
            state.state, state.reason = "failed", job["failed"]  # an error before the run had a folder
        words = [word.partition("=") for word in job.get("overrides") or ()]
        settings = {key.lstrip("+~"): value if sign else "(removed)" for key, sign, value in words}
        value = run.metric(metric) if state.state == "finished" else None
        jobs.append(SweepJob(job["number"], settings, state, run, value))
    return Sweep(
        folder=folder,
        command=content.get("command", ""),
        created=content.get("created", ""),
        jobs=jobs,
        keys=[key.lstrip("+~") for key in content.get("swept", ())],
        metric=metric,
        direction=content.get("direction") or "minimize",
        trials=content.get("trials"),
    )
