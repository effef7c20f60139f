"""All runs and sweeps below some folders, as a table or as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.evaluation.table import format_table
from mmadapter.runs.state import RunState, state_of
from mmadapter.runs.sweep_file import SWEEP_FILE, read_sweep, run_of, sweeps_in
from mmadapter.terminal import duration

RUN_FILES = ("config.yaml", "attempt.json", "finished.json")
Queue = Mapping[str, tuple[str, str]] | None
COLUMNS = ("run", "state", "step", "of", "%", "best val.", "score", "time", "last change", "where")


@dataclass
class Listed:
    """A run, and which job of which sweep it is."""

    state: RunState
    sweep: str | None = None
    job: int | None = None


def list_runs(folders: Sequence[Path], queue: Queue, say: Callable[[str], None] = print) -> list[Listed]:
    """Every run in `folders` (roots, sweeps' folders or run folders): first the sweeps' jobs, then the other runs.

    Of a sweep whose file is damaged, `say` gets the message; its runs count as runs of no sweep. Raises InputError for
    a folder that is not there.
    """
    found: list[Listed] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder. Name the one that holds the runs (runs_root).")
        for sweep in sweeps_in(folder):
            try:
                found += jobs_of(sweep, queue)
            except InputError as error:
                say(str(error))
    seen = {listed.state.folder.resolve() for listed in found}
    for folder in folders:
        own = [path for path in runs_in(folder) if path.resolve() not in seen]
        seen |= {path.resolve() for path in own}
        found += [Listed(state_of(path, queue=queue)) for path in own]
    return found


def runs_in(folder: Path) -> Iterator[Path]:
    """The folder itself if it is a run, else the runs directly in it."""
    if any((folder / name).is_file() for name in RUN_FILES):
        yield folder
    elif not (folder / SWEEP_FILE).is_file():
        yield from (path for path in sorted(folder.iterdir()) if any((path / name).is_file() for name in RUN_FILES))


def jobs_of(sweep: Path, queue: Queue) -> list[Listed]:
    """The jobs of a sweep, those included that never started."""
    return [Listed(job_state(sweep, job, queue), sweep.name, job["number"]) for job in read_sweep(sweep)["jobs"]]


def job_state(sweep: Path, job: Mapping[str, Any], queue: Queue) -> RunState:
    """The state of one job; an error that came before its run folder is known to the sweep alone."""
    folder = run_of(sweep, dict(job))
    found = state_of(folder or sweep / f"job-{job['number']}", slurm_job=job.get("slurm_job"), queue=queue)
    if job.get("failed") and found.state in ("never started", "running", "killed"):
        found.state, found.reason = "failed", job["failed"]
    return found


def as_text(listed: Sequence[Listed], now: float | None = None) -> str:
    """The table, the reasons below it, and a line of counts."""
    if not listed:
        return "no runs"
    shown = format_table(COLUMNS, [row_of(one, now or time.time()) for one in listed])
    reasons = [f"{name_of(one)}: {one.state.state}: {one.state.reason}" for one in listed if one.state.reason]
    return "\n".join([shown, *([""] + reasons if reasons else []), "", counts(listed)])


def counts(listed: Sequence[Listed]) -> str:
    """How many runs are in which state: "3 finished, 1 failed"; one that is a job of two sweeps counts once."""
    states = list({one.state.folder.resolve(): one.state.state for one in listed}.values())
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def name_of(one: Listed) -> str:
    job = f"{one.sweep}#{one.job} " if one.sweep else ""
    return f"{job}{one.state.folder}"


def row_of(one: Listed, now: float) -> list[str]:
    """The cells of one run; "-" where nothing is known."""
    run = one.state
    score = next(iter(run.scores.items()), None)
    where = " ".join(part for part in (run.host, f"job {run.slurm_job}" if run.slurm_job else None) if part)
    values = [
        run.state,
        run.step,
        run.steps,
        None if run.percent is None else f"{run.percent:.0f}",
        None if run.best_validation is None else f"{run.best_validation:.4f}",
        None if score is None else f"{score[0]} {score[1]:.4g}",
        None if run.seconds is None else duration(run.seconds),
        None if run.changed is None else f"{duration(max(0, now - run.changed))} ago",
        where or None,
    ]
    return [name_of(one), *("-" if value is None else str(value) for value in values)]


def as_json(listed: Sequence[Listed]) -> list[dict[str, Any]]:
    """The same for programs; times are UNIX times, a run that has no sweep has null there."""
    return [{**one.state.as_json(), "sweep": one.sweep, "job": one.job} for one in listed]
