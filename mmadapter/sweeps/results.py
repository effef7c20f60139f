"""What a sweep shows of its results: sweep.csv, sweep.html, and a table on the terminal."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from mmadapter.files import write_atomically
from mmadapter.reports.sweep import page_of
from mmadapter.runs.state import Queue
from mmadapter.runs.sweep import Sweep, read_results
from mmadapter.terminal import format_table, number_text


def write_sweep(folder: Path, queue: Queue = None) -> Sweep:
    """Writes FOLDER/sweep.csv and FOLDER/sweep.html from what the run folders hold; works on half-finished sweeps."""
    sweep = read_results(folder, queue)
    write_atomically(folder / "sweep.csv", csv_of(sweep))
    write_atomically(folder / "sweep.html", page_of(sweep))
    return sweep


def csv_of(sweep: Sweep) -> str:
    """One line a job: what it differs in, its state, scores, cost; an empty cell where there is no number."""
    rows: list[dict[str, Any]] = []
    for job in sweep.jobs:
        summary, validation = job.run.summary, job.run.validation
        training, peak = summary.get("training") or {}, summary.get("peak") or {}
        rows.append(
            {
                "job": job.number,
                **{key: job.settings.get(key) for key in sweep.keys},
                "state": job.state.state,
                "reason": job.state.reason,
                "metric": sweep.metric,
                "value": job.value,
                **job.run.scores(main=False),
                "best_validation_loss": job.run.best_validation_loss,
                "final_validation_loss": validation[-1]["loss"] if validation else None,
                "step": job.state.step,
                "steps": job.state.steps,
                "training_seconds": training.get("seconds", job.state.seconds),
                "wall_seconds": summary.get("wall_seconds"),
                "peak_host_bytes": peak.get("host_bytes"),
                "peak_gpu_bytes": peak.get("gpu_bytes"),
                "slurm_job": job.state.slurm_job,
                "run": str(job.state.folder),
            }
        )
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(value) for name, value in row.items()} for row in rows)
    return out.getvalue()


def cell(value: Any) -> Any:
    """A value for a table that a spreadsheet may open: a text that it would take for a formula has a quote in front."""
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    try:
        float(value)
    except ValueError:
        return f"'{value}"
    return value  # -1 and +0.5 are numbers


def sweep_text(sweep: Sweep) -> str:
    """The sweep for the terminal: jobs, means over seeds, the best, the failures, the files."""
    rows = []
    for job in sweep.jobs:
        own = (job.settings.get(key, "-") for key in sweep.keys)
        rows.append([str(job.number), *own, job.state.state, "-" if job.value is None else number_text(job.value)])
    lines = [format_table(["job", *sweep.keys, "state", sweep.metric], rows)] if rows else ["no jobs"]
    for group in sweep.over_seeds:
        named = " ".join(f"{key}={value}" for key, value in group.settings.items()) or "all"
        lines.append(f"over seeds: {named}: {group.text}")
    if (best := sweep.best) is not None:
        settings = " ".join(f"{key}={best.settings.get(key)}" for key in sweep.keys)
        lines.append(f"best {sweep.metric} ({sweep.direction}): job {best.number} {settings}, {best.state.folder}")
    if sweep.tied:
        numbers = ", ".join(str(job.number) for job in sweep.tied)
        value = number_text(sweep.best_value or 0.0)
        lines.append(f"best {sweep.metric} ({sweep.direction}): {value}, the same for jobs {numbers}: none is the best")
    lines += [f"job {job.number} {job.state.state}: {job.state.reason}" for job in sweep.jobs if job.state.reason]
    lines += [f"job {job.number}: not shown: {line}" for job in sweep.jobs for line in job.run.left_out.lines()]
    lines.append(f"table and plots: {sweep.folder / 'sweep.html'}, {sweep.folder / 'sweep.csv'}")
    return "\n".join(lines)
