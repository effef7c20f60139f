"""sweep.html: a sweep on one self-contained page; its table can be sorted."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from mmadapter.evaluation.report import duration, gigabytes, render
from mmadapter.evaluation.scales import number_text
from mmadapter.runs.listing import counts
from mmadapter.runs.sweep import Sweep, SweepJob
from mmadapter.runs.sweep_plots import loss_curves, plots_of, short

LOWER_IS_BETTER = "lower is better"
COST = ("best validation loss", "last validation loss", "steps", "training", "wall time", "peak memory", "peak GPU")


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by (None = last)."""

    text: str
    order: float | str | None


def page_of(sweep: Sweep) -> str:
    """The page's text."""
    rows = [row_of(sweep, job) for job in sweep.jobs]
    names = [*sweep.keys, *sweep.score_names, *COST]
    used = [place for place, _ in enumerate(names) if any(row["cells"][place].order is not None for row in rows)]
    for row in rows:
        row["cells"] = [row["cells"][place] for place in used]
    return render(
        "sweep.html.jinja",
        title=sweep.folder.name,
        folder=str(sweep.folder),
        command=sweep.command,
        created=sweep.created,
        counts=counts([job.state for job in sweep.jobs]) or "no jobs yet",
        trials=sweep.trials,
        metric=sweep.metric,
        better=LOWER_IS_BETTER if sweep.direction == "minimize" else "higher is better",
        tiles=tiles(sweep),
        plots=plots_of(sweep),
        training=loss_curves(sweep, "train"),
        validation=loss_curves(sweep, "validation"),
        many=len(sweep.jobs) > 6,
        seeds=[(list(group.settings.values()), group.text) for group in sweep.over_seeds],
        seed_keys=[breakable(key) for key in sweep.keys if key != "seed"],
        columns=[(breakable(names[place]), names[place] in sweep.keys) for place in used],
        rows=rows,
        troubles=[(job.number, job.state.state, job.state.reason) for job in sweep.jobs if job.state.reason],
    )


def tiles(sweep: Sweep) -> list[tuple[str, str, str]]:
    """The best job and the state of all: (name, value, remark)."""
    done = sum(job.finished for job in sweep.jobs)
    of = sweep.trials if sweep.trials is not None else len(sweep.jobs)
    found = [("Finished", f"{done} of {of}", "trials" if sweep.trials is not None else "jobs")]
    if (best := sweep.best) is not None:
        value = sweep.value(best)
        assert value is not None
        found.append((f"Best {sweep.metric}", number_text(value), f"job {best.number}"))
        found += [
            (key.rpartition(".")[2], short(best.settings.get(key, "–")), f"of the best job, {key}")
            for key in sweep.keys[:6]
        ]
    return found


def breakable(key: str) -> Markup:
    """A dotted key that may break after its dots."""
    return Markup("<wbr>").join(escape(part) for part in key.replace(".", ".\0").split("\0"))


def row_of(sweep: Sweep, job: SweepJob) -> dict[str, Any]:
    """One row of the table; a dash where the run has no such number."""
    scores = job.run.scores(main=True)
    summary, validation = job.run.summary, job.run.validation
    training, peak = summary.get("training") or {}, summary.get("peak") or {}
    step, steps = job.state.step, job.state.steps
    cells = [setting_cell(job.settings.get(key)) for key in sweep.keys]
    cells += [number_cell(scores.get(name), "{:.2f}") for name in sweep.score_names]
    cells += [
        number_cell(job.run.best_validation_loss, "{:.4f}"),
        number_cell(validation[-1]["loss"] if validation else None, "{:.4f}"),
        Cell("–" if step is None else f"{step:,}" + (f" of {steps:,}" if steps and step < steps else ""), step),
        made_cell(training.get("seconds", job.state.seconds), duration),
        made_cell(summary.get("wall_seconds"), duration),
        made_cell(peak.get("host_bytes"), gigabytes),
        made_cell(peak.get("gpu_bytes"), gigabytes),
    ]
    return {
        "number": job.number,
        "state": job.state.state,
        "cells": cells,
        "best": job is sweep.best,
        "run": job.state.folder.name,
        "report": link_to(job.state.folder / "report.html", sweep.folder) if job.finished else None,
    }


def link_to(file: Path, page_folder: Path) -> str:
    """A file as a page in `page_folder` names it: relative, so that both may be moved together."""
    return quote(os.fsencode(os.path.relpath(file, page_folder)))


def setting_cell(text: str | None) -> Cell:
    if text is None:
        return Cell("–", None)
    try:
        return Cell(short(text), float(text))
    except ValueError:
        return Cell(text, text)


def number_cell(value: float | None, form: str) -> Cell:
    return Cell("–" if value is None else form.format(value), value)


def made_cell(value: float | None, text_of: Any) -> Cell:
    return Cell("–" if value is None else text_of(value), value)
