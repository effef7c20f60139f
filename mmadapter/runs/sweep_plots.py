"""Plots of a sweep as inline SVG and tables: the metric against each swept setting, the loss curves of all jobs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mmadapter.evaluation import charts
from mmadapter.evaluation.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Series, grid_line
from mmadapter.evaluation.scales import Scale, finite, number_text, smoothed
from mmadapter.runs.sweep import SEED, Sweep, SweepJob

MOST_CELLS = 12  # rows and columns of a heat map
NAMED_CURVES = 6  # page colours
LABEL_LETTERS = 12


@dataclass(frozen=True)
class Dot:
    """One finished job in a plot."""

    text: str  # the value of the setting
    value: float  # the metric
    name: str
    is_best: bool


def plots_of(sweep: Sweep) -> list[Markup]:
    """A heat map for a grid of two settings, else one plot a setting; none before a job has finished."""
    keys = [key for key in sweep.keys if key != SEED] or sweep.keys
    if len(sweep.jobs) < 2 or not sweep.valued:
        return []
    if len(keys) == 2 and sweep.trials is None and fits_a_map(sweep, keys):
        return [heat_map(sweep, *keys)]
    plots = [score_plot(sweep, key, joins=len(keys) == 1 and key != SEED) for key in keys]
    return [search_plot(sweep), *plots] if sweep.trials is not None else plots


def fits_a_map(sweep: Sweep, keys: Sequence[str]) -> bool:
    return all(len({job.settings.get(key) for job in sweep.jobs}) <= MOST_CELLS for key in keys)


def in_order(texts: Sequence[str]) -> list[str]:
    """Different values: numbers by size, words as they come."""
    unique = list(dict.fromkeys(texts))
    numbers = [as_number(text) for text in unique]
    if None in numbers:
        return unique
    return sorted(unique, key=lambda text: as_number(text) or 0.0)


def as_number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def heat_map(sweep: Sweep, row_key: str, column_key: str) -> Markup:
    """A table with the metric in each cell (the mean where there are several jobs); the darker, the better."""
    cells: dict[tuple[str, str], list[float]] = {}
    for job, value in sweep.valued:
        cells.setdefault((job.settings.get(row_key, ""), job.settings.get(column_key, "")), []).append(value)
    means = {place: statistics.fmean(values) for place, values in cells.items()}
    rows = in_order([job.settings.get(row_key, "") for job in sweep.jobs])
    columns = in_order([job.settings.get(column_key, "") for job in sweep.jobs])
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in columns)
    body = Markup("").join(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(
            row, Markup("").join(cell(sweep, means, cells, (row, column)) for column in columns)
        )
        for row in rows
    )
    caption = Markup(
        '<figcaption><span class="what">{}</span><span>rows: {}, columns: {}{}</span></figcaption>'
    ).format(sweep.metric, row_key, column_key, "; mean over seeds" if SEED in sweep.keys else "")
    table = Markup(
        '<div class="scroll"><table class="cells"><thead><tr><td></td>{}</tr></thead><tbody>{}</tbody></table>'
    )
    return Markup("<figure>{}{}</div></figure>").format(caption, table.format(head, body))


def cell(
    sweep: Sweep, means: dict[tuple[str, str], float], cells: dict[tuple[str, str], list[float]], place: tuple[str, str]
) -> Markup:
    """One cell; a dash where no job has finished."""
    if place not in means:
        return Markup('<td class="none">–</td>')
    low, high = min(means.values()), max(means.values())
    share = (means[place] - low) / (high - low) if high > low else 0.5
    share = 1 - share if sweep.direction == "minimize" else share
    title = ", ".join(number_text(value) for value in cells[place])
    return Markup('<td style="--share:{}%" title="{}">{}</td>').format(
        round(6 + 50 * share), title, number_text(means[place])
    )


def score_plot(sweep: Sweep, key: str, *, joins: bool) -> Markup:
    """One dot a finished job against the value of one setting; `joins`: a line through the means."""
    dots = dots_of(sweep, key)
    texts = in_order([dot.text for dot in dots])
    means = [(text, statistics.fmean(dot.value for dot in dots if dot.text == text)) for text in texts]
    return dot_figure(sweep.metric or "", f"by {key}", dots, means if joins and len(texts) > 1 else [])


def search_plot(sweep: Sweep) -> Markup:
    """One dot a trial, in their order, and a line at the best so far."""
    better = min if sweep.direction == "minimize" else max
    dots = dots_of(sweep, None)
    so_far = [(dot.text, better(one.value for one in dots[: place + 1])) for place, dot in enumerate(dots)]
    return dot_figure(sweep.metric or "", "by trial; the line: the best so far", dots, so_far)


def dots_of(sweep: Sweep, key: str | None) -> list[Dot]:
    """The finished jobs by the value of `key`, None: by their number."""
    best = sweep.best
    return [
        Dot(
            str(job.number) if key is None else job.settings.get(key, ""),
            value,
            f"job {job.number}" if key is None else f"job {job.number}: {job.settings.get(key)}",
            job is best,
        )
        for job, value in sweep.valued
    ]


def dot_figure(metric: str, against: str, dots: Sequence[Dot], line: Sequence[tuple[str, float]]) -> Markup:
    """Dots over a grid, the best one in another colour, and a line through (value of the setting, metric)."""
    texts = in_order([dot.text for dot in dots])
    x, ticks = x_axis(texts)
    y = y_axis([dot.value for dot in dots])
    parts = [
        Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(WIDTH, HEIGHT, f"{metric} {against}")
    ]
    parts += [grid_line("grid", LEFT, WIDTH - RIGHT, y(tick), number_text(tick)) for tick in y.ticks()]
    tick_text = Markup('<text class="tick" x="{}" y="{}" text-anchor="middle">{}</text>')
    parts += [tick_text.format(x(place), HEIGHT - BOTTOM + 16, name) for place, name in ticks]
    parts.append(grid_line("axis", LEFT, WIDTH - RIGHT, HEIGHT - BOTTOM, ""))
    path = " ".join(f"{x(place_of(text, texts))},{y(value)}" for text, value in line)
    parts.append(Markup('<polyline class="line c1 thin" points="{}"/>').format(path) if path else Markup(""))
    circle = Markup('<circle class="dot c{}" cx="{}" cy="{}" r="{}"><title>{}: {}</title></circle>')
    for dot in sorted(dots, key=lambda dot: dot.is_best):
        colour, size = (2, 5) if dot.is_best else (1, 4)
        places = x(place_of(dot.text, texts)), y(dot.value)
        parts.append(circle.format(colour, *places, size, dot.name, number_text(dot.value)))
    caption = Markup('<figcaption><span class="what">{}</span><span class="path">{}</span></figcaption>')
    return Markup('<figure class="chart">{}{}</svg></figure>').format(
        caption.format(metric, against), Markup("").join(parts)
    )


def place_of(text: str, texts: Sequence[str]) -> float:
    """Where a value stands: itself if all are numbers, else its place in the row."""
    if any(as_number(one) is None for one in texts):
        return texts.index(text)
    return as_number(text) or 0.0


def x_axis(texts: Sequence[str]) -> tuple[Scale, list[tuple[float, str]]]:
    """Scale and ticks: logarithmic where positive numbers span a factor of 20; words at equal distances."""
    places = [place_of(text, texts) for text in texts]
    low, high = min(places), max(places)
    numeric = all(as_number(text) is not None for text in texts)
    log = numeric and low > 0 and high / low >= 20
    room = 0.0 if log else 0.08 * ((high - low) or abs(high) or 1.0)
    start, end = LEFT + 14, WIDTH - RIGHT - 14
    scale = Scale(low / 1.3, high * 1.3, start, end, True) if log else Scale(low - room, high + room, start, end)
    if len(texts) <= 8 and (not log or len(texts) <= 6):
        return scale, list(zip(places, [short(text) for text in texts], strict=True))
    if numeric:
        return scale, [(tick, number_text(tick)) for tick in scale.ticks()]
    stride = math.ceil(len(texts) / 8)
    return scale, [(place, shortened(text)) for place, text in list(zip(places, texts, strict=True))[::stride]]


def short(text: str) -> str:
    """A number with few digits; a word cut where it is long."""
    number = as_number(text)
    if number is None:
        return shortened(text)
    return text if len(text) <= 8 else f"{number:.4g}"


def shortened(text: str) -> str:
    return text if len(text) <= LABEL_LETTERS else f"{text[: LABEL_LETTERS - 1]}…"


def y_axis(values: Sequence[float]) -> Scale:
    low, high = min(values), max(values)
    room = 0.08 * ((high - low) or abs(high) or 1.0)
    return Scale(low - room, high + room, HEIGHT - BOTTOM, TOP)


def loss_curves(sweep: Sweep, kind: str) -> Markup:
    """The losses of all jobs; of many jobs only the best have a colour and a name."""
    named = named_jobs(sweep)
    lines = []
    for job in sorted(sweep.jobs, key=lambda job: job.number in named):
        records = job.run.train if kind == "train" else job.run.validation
        points = finite([(record["step"], record["loss"]) for record in records])
        points = smoothed(points) if kind == "train" else points
        colour = named.index(job.number) + 1 if job.number in named else 0
        lines.append(
            Series(label_of(sweep, job), points, colour, faint=not colour, dots=bool(colour) and len(points) < 2)
        )
    label = "Training loss per token" if kind == "train" else "Validation loss per token"
    return charts.line_chart(lines, x_label="step", y_label=label)


def named_jobs(sweep: Sweep) -> list[int]:
    """Numbers of the jobs with a colour of their own: all of few, else the best."""
    if len(sweep.jobs) <= NAMED_CURVES:
        return [job.number for job in sweep.jobs]
    sign = 1 if sweep.direction == "minimize" else -1
    ranked = sorted(sweep.valued, key=lambda one: sign * one[1])
    return [job.number for job, _ in ranked[:NAMED_CURVES]] or [job.number for job in sweep.jobs[:NAMED_CURVES]]


def label_of(sweep: Sweep, job: SweepJob) -> str:
    """ "job 3: base_lr=9e-3 layers=20": the last part of each key, and not more than fits."""
    parts = [f"{shortened(key.rpartition('.')[2])}={short(job.settings.get(key, '-'))}" for key in sweep.keys]
    text = f"job {job.number}: {' '.join(parts)}"
    return text if len(text) <= 48 else f"{text[:47]}…"
