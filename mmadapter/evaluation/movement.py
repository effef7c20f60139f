"""How far each group of parameters has moved, for the report: a curve and a row per group."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from mmadapter.evaluation import charts
from mmadapter.evaluation.charts import Series
from mmadapter.evaluation.run_files import Record, RunFiles


def movement_records(run: RunFiles) -> list[Record]:
    """The journal's lines that tell the movement, in the order of the steps, one a step."""
    known = [one for one in [*run.validation, *run.train] if one.get("movement")]
    by_step = {
        record["step"]: record
        for record in known
        if all(moved["distance"] is not None for moved in record["movement"].values())  # null: it was not finite
    }
    return [by_step[step] for step in sorted(by_step)]


def movement_chart(run: RunFiles) -> Markup:
    """Each group's distance from its start over steps; relative to the start's norm where every group has one."""
    records = movement_records(run)
    if not records:
        return Markup("")
    groups = list(records[-1]["movement"])
    is_relative = all(records[-1]["movement"][group]["relative"] is not None for group in groups)
    key, factor = ("relative", 100) if is_relative else ("distance", 1)
    lines = [
        Series(group, [(one["step"], factor * one["movement"][group][key]) for one in records], colour)
        for group, colour in colours_of(run, groups).items()
    ]
    label = "Distance from the start, % of the start's norm" if is_relative else "Distance from the start"
    return charts.line_chart(lines, x_label="step", y_label=label, from_zero=True)


def colours_of(run: RunFiles, groups: list[str]) -> dict[str, int]:
    """Page colours: a group that learns from one source has that source's colour in the chart of losses."""
    trained = list(dict.fromkeys(name for record in run.train for name in record.get("loss_by_source") or {}))
    sources = {row.get("group"): row.get("sources", "") for row in run.trainable}
    own = {name: trained.index(sources[name]) + 1 for name in groups if sources.get(name) in trained}
    if len(set(own.values())) < len(groups):  # several learn from all, or from the same
        return {name: number for number, name in enumerate(groups, start=1)}
    return own


def movement_rows(run: RunFiles) -> list[dict[str, Any]]:
    """One row a group: what it learned from, how far it is from its start at the last recorded step."""
    records = movement_records(run)
    if not records:
        return []
    sources = {row.get("group"): row.get("sources", "") for row in run.trainable}
    moved = records[-1]["movement"]
    return [{"group": name, "sources": sources.get(name, ""), **one} for name, one in moved.items()]
