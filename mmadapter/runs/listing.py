"""All runs and sweeps below some folders, as a table or as JSON."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.runs.state import Queue, RunFolder, RunState, state_of
from mmadapter.runs.sweep import SWEEP_FILE, jobs_of, sweeps_in
from mmadapter.terminal import duration, format_table

RUN_FILES = ("config.yaml", "attempt.json", "finished.json")
COLUMNS = ("run", "state", "step", "of", "%", "best val.", "score", "time", "last change", "where")


@dataclass
class Listed:
    """A run, and which job of which sweep it is."""

    state: RunState
    sweep: str | None = None
    job: int | None = None

    @property
    def name(self) -> str:
        return f"{self.sweep}#{self.job} {self.state.folder}" if self.sweep else str(self.state.folder)


def list_runs(folders: Sequence[Path], queue: Queue, say: Callable[[str], None] = print) -> list[Listed]:
    """Every run in `folders` (roots, sweeps' folders or run folders): first the sweeps' jobs, then the other runs.

    `say` gets the message about a sweep whose file is damaged; its runs count as runs of no sweep. Raises InputError
    for a folder that does not exist.
    """
    found: list[Listed] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder. Name the one that holds the runs (runs_root).")
        for sweep in sweeps_in(folder):
            try:
                found += [Listed(job.state, sweep.name, job.number) for job in jobs_of(sweep, queue)]
            except InputError as error:
                say(str(error))
    seen = {listed.state.folder.resolve() for listed in found}
    for folder in folders:
        own = [path for path in runs_in(folder) if path.resolve() not in seen]
        seen |= {path.resolve() for path in own}
        found += [Listed(state_of(RunFolder(path), queue=queue)) for path in own]
    return found


def runs_in(folder: Path) -> Iterator[Path]:
    """The folder itself if it is a run, else the runs directly in it."""
    if any((folder / name).is_file() for name in RUN_FILES):
        yield folder
    elif not (folder / SWEEP_FILE).is_file():
        yield from (path for path in sorted(folder.iterdir()) if any((path / name).is_file() for name in RUN_FILES))


def as_text(listed: Sequence[Listed]) -> str:
    """The table, the reasons below it, and a line of counts."""
    if not listed:
        return "no runs"
    table = format_table(COLUMNS, [_row(one) for one in listed])
    reasons = [f"{one.name}: {one.state.state}: {one.state.reason}" for one in listed if one.state.reason]
    return "\n".join([table, *([""] + reasons if reasons else []), "", counts([one.state for one in listed])])


def counts(runs: Sequence[RunState]) -> str:
    """How many runs are in which state: "3 finished, 1 failed"; one that is a job of two sweeps counts once."""
    states = list({run.folder.resolve(): run.state for run in runs}.values())
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))


def _row(one: Listed) -> list[str]:
    """The cells of one run; "-" where nothing is known."""
    run = one.state
    score = next(iter(run.scores.items()), None)
    cells = [
        run.state,
        run.step,
        run.steps,
        None if run.percent is None else f"{run.percent:.0f}",
        None if run.best_validation is None else f"{run.best_validation:.4f}",
        None if score is None else f"{score[0]} {score[1]:.4g}",
        None if run.seconds is None else duration(run.seconds),
        None if run.changed is None else f"{duration(max(0, time.time() - run.changed))} ago",
        " ".join(part for part in (run.host, f"job {run.slurm_job}" if run.slurm_job else None) if part) or None,
    ]
    return [one.name, *("-" if cell is None else str(cell) for cell in cells)]


def as_json(listed: Sequence[Listed]) -> list[dict[str, Any]]:
    """The same for programs; times are UNIX times, a run that belongs to no sweep has null there."""
    return [{**one.state.as_json(), "sweep": one.sweep, "job": one.job} for one in listed]
