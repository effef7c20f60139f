"""report.html: one self-contained page about a run folder, from its files only (no network, pictures inlined)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from mmadapter.config import embedded_notice
from mmadapter.files import write_atomically
from mmadapter.reports import charts
from mmadapter.reports.charts import Point, Series, finite, smoothed
from mmadapter.reports.comparison import write_comparison
from mmadapter.reports.page import ReportedRun, render
from mmadapter.runs.state import Record
from mmadapter.tasks.section import Tile, sections_of, shortened
from mmadapter.terminal import duration, readable_bytes

GATE_LAYERS_SHOWN = 32


def write_report(folder: Path) -> Path:
    """Writes FOLDER/report.html from what the run folder holds so far, and returns its path.

    A run of variants has a page for each of them, and its own compares them. Works on unfinished runs: parts that have
    no files yet are left out.
    """
    run = ReportedRun(Path(folder))
    if run.variants:
        for variant in run.variants.values():
            write_report(variant.folder)
        return write_comparison(run)
    sections = sections_of(run.folder, run.config)
    page = render(
        "report.html.jinja",
        title=run.config.get("experiment") or run.folder.name,
        folder=str(run.folder),
        notice=embedded_notice(run.config.get("experiment", ""), run.config.get("embedded")),
        finished=bool(run.summary),
        tiles=[*(tile for section in sections.values() for tile in section.tiles), *tiles(run)],
        sections=[(section, result_links(run.folder, name)) for name, section in sections.items()],
        answers=learned_answers(run),
        losses=[(name, chart) for name in AGAINST if (chart := loss_chart(run, name))],
        training_charts=training_charts(run),
        not_finite=not_finite(run),
        movement=movement_rows(run),
        gate_panels=gate_panels(run),
        gate_map=gate_map(run),
        trainable=run.trainable,
        trainable_total=sum(row.get("parameters", 0) for row in run.trainable),
        config_text=run.config_text,
        versions=version_rows(run.versions),
        left_out=run.left_out.lines(),
    )
    target = run.folder / "report.html"
    write_atomically(target, page)
    return target


def tiles(run: ReportedRun) -> list[Tile]:
    """Loss, size, time and memory of the run."""
    found = []
    if run.best_validation_loss is not None:
        found.append(Tile("Validation loss", f"{run.best_validation_loss:.4f}", "the lowest, per token"))
    if run.trainable:
        total = sum(row.get("parameters", 0) for row in run.trainable)
        share = sum(row.get("share", 0) for row in run.trainable)
        found.append(Tile("Trainable", f"{total:,}", f"parameters, {100 * share:.2g} % of the host's"))
    last = run.train[-1] if run.train else {}
    seconds = run.summary.get("wall_seconds") or last.get("seconds")
    if seconds is not None:
        remark = f"{last['step']:,} training steps" if last else "no training"
        if (attempts := run.summary.get("attempts", 1)) > 1:
            remark += f"; sum over {attempts} attempts"
        found.append(Tile("Wall time" if run.summary else "Training time", duration(seconds), remark))
    peak = run.summary.get("peak") or {}
    if peak.get("host_bytes"):
        remark = f"of the largest of {len(peak['processes'])} processes" if peak.get("processes") else "of the process"
        if peak.get("gpu_bytes"):
            remark = f"and {readable_bytes(peak['gpu_bytes'])} on the GPU, {remark}"
        found.append(Tile("Peak memory", readable_bytes(peak["host_bytes"]), remark))
    return found


def result_links(folder: Path, name: str) -> list[tuple[str, str]]:
    """The files of an evaluation, as (name, link relative to the page)."""
    files = [folder / "eval" / name / file for file in ("predictions.jsonl", "metrics.json")]
    return [(file.name, quote(f"eval/{name}/{file.name}")) for file in files if file.is_file()]


def learned_answers(run: ReportedRun) -> list[dict[str, Any]]:
    """A few samples with what was answered at step 0, early, late and in the end."""
    records = run.answers
    if not records:
        return []
    last = len(records) - 1
    shown = [records[place] for place in sorted({0, min(1, last), round(last / 2), last})]
    found = []
    for sample in records[-1]["samples"]:
        own = [
            (record["step"], shortened(one.get("answer"), 300), one.get("right"))
            for record in shown
            for one in record["samples"]
            if (one.get("task"), one.get("sample")) == (sample.get("task"), sample.get("sample"))
        ]
        truth = shortened(next(iter(sample.get("references") or ()), ""), 300)
        question = shortened(sample.get("question"), 300)
        found.append({"image": sample.get("image"), "question": question, "answers": own, "truth": truth})
    return found


# ---- curves


AGAINST = ("steps", "time", "tokens")
"""What losses are drawn against."""


def places_of(run: ReportedRun, against: str) -> tuple[dict[int, float], str]:
    """Step -> place on the axis of steps, time or supervised tokens so far, and the axis's name."""
    steps = [0, *(record["step"] for record in run.train)]
    if against == "time":
        seconds = [0.0, *(record.get("seconds") or 0.0 for record in run.train)]
        unit, text = (60, "minutes") if seconds[-1] > 180 else (1, "seconds")
        return dict(zip(steps, (second / unit for second in seconds), strict=True)), f"training time, {text}"
    if against == "tokens":
        tokens = accumulate((record.get("supervised_tokens") or 0 for record in run.train), initial=0)
        return dict(zip(steps, map(float, tokens), strict=True)), "supervised tokens"
    return {step: float(step) for step in [*steps, *(record["step"] for record in run.validation)]}, "step"


def loss_chart(run: ReportedRun, against: str = "steps") -> Markup:
    """Training loss by source (smoothed over its raw values) and validation loss, dashed where it has sources, too."""
    place, x_label = places_of(run, against)
    if len(set(place.values())) < 2 < len(place):
        return Markup("")  # an older journal, without tokens
    colours, lines = {}, []

    def placed(points: list[Point]) -> list[Point]:
        return [(place[int(step)], loss) for step, loss in points if step in place]

    for colour, (source, points) in enumerate(losses_by_source(run.train).items(), start=1):
        name = f"training, {source}" if source else "training"
        colours[source] = colour
        raw = placed(points)
        lines += [Series(name, raw, colour, faint=True), Series(name, smoothed(raw), colour)]
    dots = len(run.validation) <= 40
    for source, points in losses_by_source(run.validation).items():
        name = f"validation, {source}" if source else "validation"
        colour = colours.get(source, 6) if source else 6
        lines.append(Series(name, placed(points), colour, dots=dots, dashed=bool(source)))
    return charts.line_chart(lines, x_label=x_label, y_label="Loss per token")


def training_charts(run: ReportedRun) -> list[Markup]:
    """Learning rate, gradient norm, movement, throughput and memory over the steps, as far as they were recorded."""

    def line(name: str, colour: int, value: Callable[[Record], float | None], faint: bool = False) -> list[Series]:
        points = finite((record["step"], value(record)) for record in run.train)
        if not faint:
            return [Series(name, points, colour)]
        return [Series(name, points, colour, faint=True), Series(name, smoothed(points), colour)]

    groups = next((list(one["grad_norm_by_group"]) for one in run.train if one.get("grad_norm_by_group")), [])
    norms = [
        series
        for group, colour in group_colours(run, groups).items()
        for series in line(group, colour, partial(part_of, "grad_norm_by_group", group), True)
    ]
    memory = [
        series
        for number, (name, key) in enumerate({"process": "host_bytes", "GPU": "gpu_bytes"}.items(), start=1)
        for series in line(name, number, partial(part_of, "memory", key))
    ]
    memory = [replace(one, points=[(step, size / 1e9) for step, size in one.points]) for one in memory]
    drawn = {
        "Learning rate": (line("lr", 4, partial(part_of, None, "lr")), True),
        "Gradient norm": (norms or line("all", 1, partial(part_of, None, "grad_norm"), True), False),
        "Supervised tokens a second": (line("tokens", 2, partial(part_of, None, "tokens_per_s"), True), True),
        "Peak memory so far, GB": (memory, True),
    }
    found = [
        charts.line_chart(lines, x_label="step", y_label=label, from_zero=from_zero)
        for label, (lines, from_zero) in drawn.items()
    ]
    return [chart for chart in [*found, movement_chart(run)] if chart]


def part_of(inside: str | None, key: str, record: Record) -> float | None:
    """A number of a record, or of a mapping in it."""
    found = record if inside is None else record.get(inside) or {}
    return found.get(key)


def not_finite(run: ReportedRun) -> str:
    """How many steps had a loss without a number; empty where none."""
    steps = [record["step"] for record in run.train if record.get("loss") is None]
    if not steps:
        return ""
    return f"The loss of {len(steps):,} of {len(run.train):,} steps was not finite, first at step {steps[0]:,}."


def losses_by_source(records: Iterable[Record]) -> dict[str, list[Point]]:
    """The losses over steps of each source; of all together, under the name "", where there is no second source."""
    sources = list(dict.fromkeys(name for record in records for name in record.get("loss_by_source") or {}))
    if len(sources) < 2:
        return {"": finite((record["step"], record["loss"]) for record in records)}
    return {
        name: finite((record["step"], (record.get("loss_by_source") or {}).get(name)) for record in records)
        for name in sources
    }


def gate_panels(run: ReportedRun) -> Markup:
    """The gates of every head over steps, one small chart a layer."""
    records = [record for record in run.train if record.get("gates")]
    sizes = [len(heads) for heads in records[-1]["gates"]] if records else []
    records = [record for record in records if [len(heads) for heads in record["gates"]] == sizes]
    panels = []
    for layer, heads in enumerate(records[-1]["gates"][:GATE_LAYERS_SHOWN] if records else ()):
        lines = [
            Series(f"head {head + 1}", finite((record["step"], record["gates"][layer][head]) for record in records))
            for head in range(len(heads))
        ]
        panels.append((f"adapted layer {layer + 1}", lines))
    return charts.small_multiples(panels, x_label="step")


def gate_map(run: ReportedRun) -> Markup:
    """The last recorded gates, one row a layer (the highest layer first), one cell a head."""
    gates = next((record["gates"] for record in reversed(run.train) if record.get("gates")), None)
    if gates is None:
        return Markup("")
    names = [f"layer {number}" for number in range(1, len(gates) + 1)]
    return charts.heat_map("Gates at the last recorded step", gates[::-1], names[::-1], "head")


def movement_records(run: ReportedRun) -> list[Record]:
    """The lines of metrics.jsonl that tell how far each group has moved, in the order of the steps, one a step."""
    by_step = {
        record["step"]: record
        for record in [*run.validation, *run.train]
        if record.get("movement")
        and all(moved["distance"] is not None for moved in record["movement"].values())  # null: it was not finite
    }
    return [by_step[step] for step in sorted(by_step)]


def movement_chart(run: ReportedRun) -> Markup:
    """Each group's distance from its start over steps; relative to the start's norm where every group has one."""
    records = movement_records(run)
    if not records:
        return Markup("")
    groups = list(records[-1]["movement"])
    is_relative = all(records[-1]["movement"][group]["relative"] is not None for group in groups)
    key, factor = ("relative", 100) if is_relative else ("distance", 1)
    lines = []
    for group, colour in group_colours(run, groups).items():
        points = finite((one["step"], one["movement"].get(group, {}).get(key)) for one in records)
        lines.append(Series(group, [(step, factor * value) for step, value in points], colour))
    label = "Distance from the start, % of the start's norm" if is_relative else "Distance from the start"
    return charts.line_chart(lines, x_label="step", y_label=label, from_zero=True)


def group_colours(run: ReportedRun, groups: list[str]) -> dict[str, int]:
    """Page colours: a group that learns from one source has that source's colour in the chart of losses."""
    trained = list(losses_by_source(run.train))
    sources = {row.get("group"): row.get("sources", "") for row in run.trainable}
    own = {name: trained.index(sources[name]) + 1 for name in groups if sources.get(name) in trained}
    if len(set(own.values())) < len(groups):  # several learn from all, or from the same
        return {name: number for number, name in enumerate(groups, start=1)}
    return own


def movement_rows(run: ReportedRun) -> list[dict[str, Any]]:
    """One row a group: what it learned from, how far it is from its start at the last recorded step."""
    records = movement_records(run)
    sources = {row.get("group"): row.get("sources", "") for row in run.trainable}
    moved = records[-1]["movement"] if records else {}
    return [{"group": name, "sources": sources.get(name, ""), **one} for name, one in moved.items()]


def version_rows(versions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """versions.json as (name, value), packages among them."""
    rows: list[tuple[str, str]] = []
    for name, value in versions.items():
        if isinstance(value, Mapping):
            rows += version_rows(value)
        elif value is not None:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows
