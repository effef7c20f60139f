"""sweep.html: a sweep on one self-contained page: its metric by setting, loss curves, a table that can be sorted."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from mmadapter.reports import charts
from mmadapter.reports.charts import LEFT, RIGHT, WIDTH, Dot, Point, Scale, Series, finite, smoothed
from mmadapter.reports.page import render
from mmadapter.runs.state import counts
from mmadapter.runs.sweep import SEED, Sweep, SweepJob
from mmadapter.sweeps.settings import VALIDATION_LOSS
from mmadapter.tasks.section import Tile
from mmadapter.terminal import duration, number_text, readable_bytes

MOST_CELLS = 12  # rows and columns of a map
NAMED_CURVES = 6  # page colours
TEXT_LETTERS = 12


def page_of(sweep: Sweep) -> str:
    """The page's text."""
    cells = [cells_of(sweep, job) for job in sweep.jobs]
    used = {name for of_job in cells for name, one in of_job.items() if one.order is not None}
    columns = [name for name in cells[0] if name in used] if cells else []
    metric = "best validation loss" if sweep.metric == VALIDATION_LOSS else sweep.metric
    main = {*sweep.keys, metric}  # what a narrow screen shows
    keys = [key for key in sweep.keys if key != SEED] or sweep.keys
    is_shown = len(sweep.jobs) > 1 and bool(sweep.valued)
    is_map = (
        len(keys) == 2
        and sweep.trials is None
        and all(len({job.settings.get(key) for job in sweep.jobs}) <= MOST_CELLS for key in keys)
    )
    return render(
        "sweep.html.jinja",
        title=sweep.folder.name,
        folder=str(sweep.folder),
        command=sweep.command,
        created=sweep.created,
        counts=counts([job.state for job in sweep.jobs]) or "no jobs yet",
        trials=sweep.trials,
        metric=sweep.metric,
        better="lower is better" if sweep.direction == "minimize" else "higher is better",
        tiles=tiles(sweep),
        map=score_map(sweep, *keys) if is_shown and is_map else None,
        plots=score_plots(sweep, keys) if is_shown and not is_map else [],
        training=loss_curves(sweep, "train"),
        validation=loss_curves(sweep, "validation"),
        many=len(sweep.jobs) > NAMED_CURVES,
        seeds=[(list(group.settings.values()), group.text) for group in sweep.over_seeds],
        seed_keys=[breakable(key) for key in sweep.keys if key != SEED],
        columns=[(breakable(name), name not in main) for name in columns],
        minor=any(name not in main for name in columns),
        tied=tied_text(sweep),
        rows=[
            {
                "number": job.number,
                "state": job.state.state,
                "cells": [of_job[name] for name in columns],
                "best": job is sweep.best,
                "run": job.state.folder.name,
                # relative, so that runs and sweep may be moved together
                "report": quote(os.fsencode(os.path.relpath(job.state.folder / "report.html", sweep.folder)))
                if job.finished
                else None,
            }
            for job, of_job in zip(sweep.jobs, cells, strict=True)
        ],
        troubles=[(job.number, job.state.state, job.state.reason) for job in sweep.jobs if job.state.reason],
        left_out=[(job.number, line) for job in sweep.jobs for line in job.run.left_out.lines()],
    )


def tiles(sweep: Sweep) -> list[Tile]:
    """The state of all jobs, and the best one with its settings."""
    done, jobs = sum(job.finished for job in sweep.jobs), len(sweep.jobs)
    is_search = sweep.trials is not None
    found = [Tile("Finished", f"{done} of {sweep.trials if is_search else jobs}", "trials" if is_search else "jobs")]
    if tied := sweep.tied:
        found.append(Tile(f"Best {sweep.metric}", number_text(sweep.best_value or 0.0), f"{len(tied)} jobs are equal"))
    if (best := sweep.best) is not None:
        value = next(value for job, value in sweep.valued if job is best)
        found.append(Tile(f"Best {sweep.metric}", number_text(value), f"job {best.number}"))
        found += [
            Tile(key.rpartition(".")[2], short(best.settings.get(key, "–")), f"of the best job, {key}")
            for key in sweep.keys[:6]
        ]
    return found


def tied_text(sweep: Sweep) -> str:
    """Which jobs share the best value, where they do; empty otherwise."""
    if not (tied := sweep.tied):
        return ""
    numbers = ", ".join(str(job.number) for job in tied[:8]) + (", ..." if len(tied) > 8 else "")
    return f"No job is the best: {len(tied)} ({numbers}) have the same value and the same validation loss."


def breakable(key: str) -> Markup:
    """A dotted key that may break after its dots."""
    return Markup(str(escape(key)).replace(".", ".<wbr>"))


# ---- the table


@dataclass(frozen=True)
class Cell:
    """What a cell shows, and what it is sorted by (None = last)."""

    text: str
    order: float | str | None


def cells_of(sweep: Sweep, job: SweepJob) -> dict[str, Cell]:
    """One row of the table by columns; a dash where the run has no such number."""
    scores, summary, validation = job.run.scores(main=True), job.run.summary, job.run.validation
    training, peak = summary.get("training") or {}, summary.get("peak") or {}
    step, steps = job.state.step, job.state.steps
    step_text = "–" if step is None else f"{step:,}" + (f" of {steps:,}" if steps and step < steps else "")
    return {
        **{key: setting_cell(job.settings.get(key)) for key in sweep.keys},
        **{name: cell(scores.get(name), "{:.2f}".format) for name in sweep.score_names},
        "best validation loss": cell(job.run.best_validation_loss, "{:.4f}".format),
        "last validation loss": cell(validation[-1]["loss"] if validation else None, "{:.4f}".format),
        "steps": Cell(step_text, step),
        "training": cell(training.get("seconds", job.state.seconds), duration),
        "wall time": cell(summary.get("wall_seconds"), duration),
        "peak memory": cell(peak.get("host_bytes"), readable_bytes),
        "peak GPU": cell(peak.get("gpu_bytes"), readable_bytes),
    }


def cell(value: float | None, text_of: Callable[[float], str]) -> Cell:
    return Cell("–" if value is None else text_of(value), value)


def setting_cell(text: str | None) -> Cell:
    if text is None:
        return Cell("–", None)
    number = as_number(text)
    return Cell(text, text) if number is None else Cell(short(text), number)


# ---- the metric by setting


def score_map(sweep: Sweep, row_key: str, column_key: str) -> dict[str, Any]:
    """The mean metric of each pair of settings: a table whose cells are the darker, the better."""
    values: dict[tuple[str, str], list[float]] = {}
    for job, value in sweep.valued:
        values.setdefault((job.settings.get(row_key, ""), job.settings.get(column_key, "")), []).append(value)
    means = {pair: statistics.fmean(found) for pair, found in values.items()}
    low, high = min(means.values()), max(means.values())

    def shown(pair: tuple[str, str]) -> tuple[str, int, str] | None:
        """Text, share of colour in percent, single values; None where no job has finished."""
        if pair not in means:
            return None
        share = (means[pair] - low) / (high - low) if high > low else 0.5
        share = 1 - share if sweep.direction == "minimize" else share
        return number_text(means[pair]), round(6 + 50 * share), ", ".join(map(number_text, values[pair]))

    rows, columns = (in_order(job.settings.get(key, "") for job in sweep.jobs) for key in (row_key, column_key))
    return {
        "about": f"rows: {row_key}, columns: {column_key}{'; mean over seeds' if SEED in sweep.keys else ''}",
        "columns": columns,
        "rows": [(row, [shown((row, column)) for column in columns]) for row in rows],
    }


def score_plots(sweep: Sweep, keys: Sequence[str]) -> list[Markup]:
    """One plot a setting, one dot a finished job; of a search the best so far, too."""
    plots = []
    if sweep.trials is not None:
        better = min if sweep.direction == "minimize" else max
        texts, values = [str(job.number) for job, _ in sweep.valued], [value for _, value in sweep.valued]
        so_far = [(text, better(values[: place + 1])) for place, text in enumerate(texts)]
        plots.append(score_plot(sweep, "by trial; the line: the best so far", texts, so_far))
    for key in keys:
        texts = [job.settings.get(key, "") for job, _ in sweep.valued]
        means = []
        if sweep.trials is None and len(keys) == 1 and key != SEED and len(set(texts)) > 1:
            by_text: dict[str, list[float]] = {}
            for text, (_, value) in zip(texts, sweep.valued, strict=True):
                by_text.setdefault(text, []).append(value)
            means = [(text, statistics.fmean(by_text[text])) for text in in_order(texts)]
        plots.append(score_plot(sweep, f"by {key}", texts, means))
    return plots


def score_plot(sweep: Sweep, against: str, texts: Sequence[str], line: Sequence[tuple[str, float]]) -> Markup:
    """The finished jobs by `texts`, one a job; numbers stand where they are, words at equal distances.

    The axis is logarithmic where positive numbers span a factor of 20.
    """
    different = in_order(texts)
    numbers = [number for text in different if (number := as_number(text)) is not None]
    is_numeric = len(numbers) == len(different)
    places = dict(zip(different, numbers if is_numeric else map(float, range(len(different))), strict=True))
    low, high = min(places.values()), max(places.values())
    is_log = is_numeric and low > 0 and high / low >= 20
    room = 0.08 * ((high - low) or abs(high) or 1.0)
    start, end = LEFT + 14, WIDTH - RIGHT - 14
    x = Scale(low / 1.3, high * 1.3, start, end, True) if is_log else Scale(low - room, high + room, start, end)
    if len(different) <= (6 if is_log else 8):
        ticks = [(places[text], short(text)) for text in different]
    elif is_numeric:
        ticks = [(tick, number_text(tick)) for tick in x.ticks()]
    else:
        ticks = [(places[text], short(text)) for text in different[:: math.ceil(len(different) / 8)]]
    dots = []
    for text, (job, value) in zip(texts, sweep.valued, strict=True):
        name = f"job {job.number}" if text == str(job.number) else f"job {job.number}: {text}"
        colour, radius = (2, 5) if job is sweep.best else (1, 4)
        dots.append(Dot(places[text], value, name, colour, radius))
    dots.sort(key=lambda dot: dot.radius)  # the best one on top
    points = [(places[text], value) for text, value in line]
    return charts.dot_chart(sweep.metric, against, dots, x, ticks, points)


def in_order(texts: Iterable[str]) -> list[str]:
    """Different values: numbers by size, words as they come."""
    unique = list(dict.fromkeys(texts))
    numbers = {text: as_number(text) for text in unique}
    return unique if None in numbers.values() else sorted(unique, key=lambda text: numbers[text] or 0.0)


def as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def short(text: str) -> str:
    """A number with few digits, a word cut where it is long."""
    number = as_number(text)
    if number is not None:
        return text if len(text) <= 8 else f"{number:.4g}"
    return text if len(text) <= TEXT_LETTERS else f"{text[: TEXT_LETTERS - 1]}…"


# ---- loss curves


def loss_curves(sweep: Sweep, kind: str) -> Markup:
    """The losses of all jobs; of many jobs only the best have a colour and a name."""
    named = [job.number for job in sweep.jobs]
    if len(named) > NAMED_CURVES:
        sign = 1 if sweep.direction == "minimize" else -1
        ranked = [job.number for job, _ in sorted(sweep.valued, key=lambda one: sign * one[1])]
        named = (ranked or named)[:NAMED_CURVES]
    lines = []
    for job in sorted(sweep.jobs, key=lambda job: job.number in named):
        records = job.run.train if kind == "train" else job.run.validation
        points: list[Point] = finite((record["step"], record["loss"]) for record in records)
        points = smoothed(points) if kind == "train" else points
        colour = named.index(job.number) + 1 if job.number in named else 0
        settings = (f"{short(key.rpartition('.')[2])}={short(job.settings.get(key, '-'))}" for key in sweep.keys)
        label = f"job {job.number}: {' '.join(settings)}"
        label = label if len(label) <= 48 else f"{label[:47]}…"
        lines.append(Series(label, points, colour, faint=not colour, dots=bool(colour) and len(points) < 2))
    label = "Training loss per token" if kind == "train" else "Validation loss per token"
    return charts.line_chart(lines, x_label="step", y_label=label)
