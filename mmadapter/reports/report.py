"""report.html: one self-contained page about a run folder, from its files only (no network, pictures inlined)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmadapter.config import embedded_notice
from mmadapter.files import write_atomically
from mmadapter.reports import charts
from mmadapter.reports.charts import Point, Series, finite, smoothed
from mmadapter.reports.comparison import write_comparison
from mmadapter.reports.page import ReportedRun, render
from mmadapter.runs.state import Record
from mmadapter.tasks.section import Tile, sections_of
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
    sections = list(sections_of(run.folder, run.config).values())
    page = render(
        "report.html.jinja",
        title=run.config.get("experiment") or run.folder.name,
        folder=str(run.folder),
        notice=embedded_notice(run.config.get("experiment", ""), run.config.get("embedded")),
        finished=bool(run.summary),
        tiles=[*(tile for section in sections for tile in section.tiles), *tiles(run)],
        sections=sections,
        loss_chart=loss_chart(run),
        lr_chart=lr_chart(run),
        movement_chart=movement_chart(run),
        movement=movement_rows(run),
        gate_panels=gate_panels(run),
        gate_map=gate_map(run),
        trainable=run.trainable,
        trainable_total=sum(row.get("parameters", 0) for row in run.trainable),
        config_text=run.config_text,
        versions=version_rows(run.versions),
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


def loss_chart(run: ReportedRun) -> Markup:
    """Training loss by source (smoothed over its raw values) and validation loss, dashed where it has sources, too."""
    colours, lines = {}, []
    for colour, (source, points) in enumerate(losses_by_source(run.train).items(), start=1):
        name = f"training, {source}" if source else "training"
        colours[source] = colour
        lines += [Series(name, points, colour, faint=True), Series(name, smoothed(points), colour)]
    dots = len(run.validation) <= 40
    for source, points in losses_by_source(run.validation).items():
        name = f"validation, {source}" if source else "validation"
        colour = colours.get(source, 6) if source else 6
        lines.append(Series(name, points, colour, dots=dots, dashed=bool(source)))
    return charts.line_chart(lines, x_label="step", y_label="Loss per token")


def losses_by_source(records: Iterable[Record]) -> dict[str, list[Point]]:
    """The losses over steps of each source; of all together, under the name "", where there is no second source."""
    sources = list(dict.fromkeys(name for record in records for name in record.get("loss_by_source") or {}))
    if len(sources) < 2:
        return {"": finite((record["step"], record["loss"]) for record in records)}
    return {
        name: finite((record["step"], (record.get("loss_by_source") or {}).get(name)) for record in records)
        for name in sources
    }


def lr_chart(run: ReportedRun) -> Markup:
    """The learning rate over steps."""
    points = finite((record["step"], record.get("lr")) for record in run.train)
    return charts.line_chart([Series("lr", points, 4)], x_label="step", y_label="Learning rate", from_zero=True)


def gate_panels(run: ReportedRun) -> Markup:
    """The gates of every head over steps, one small chart a layer."""
    records = [record for record in run.train if record.get("gates")]
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
    return charts.heat_map(gates[::-1], names[::-1], "head")


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
    lines = [
        Series(group, [(one["step"], factor * one["movement"][group][key]) for one in records], colour)
        for group, colour in group_colours(run, groups).items()
    ]
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
