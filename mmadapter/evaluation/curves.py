"""A run's curves for the report: loss by source, learning rate, gates by layer and head."""

from __future__ import annotations

from markupsafe import Markup

from mmadapter.evaluation import charts
from mmadapter.evaluation.charts import Series
from mmadapter.evaluation.run_files import Record, RunFiles
from mmadapter.evaluation.scales import finite, smoothed

GATE_LAYERS_SHOWN = 32


def loss_chart(run: RunFiles) -> Markup:
    """Training loss by source (smoothed over its raw values) and validation loss."""
    sources = list(dict.fromkeys(name for record in run.train for name in record.get("loss_by_source") or {}))
    lines: list[Series] = []
    if len(sources) < 2:
        by_source = {"training": [(record["step"], record["loss"]) for record in run.train]}
    else:
        by_source = {
            f"training, {name}": [
                (record["step"], record["loss_by_source"][name])
                for record in run.train
                if (record.get("loss_by_source") or {}).get(name) is not None
            ]
            for name in sources
        }
    for colour, (name, points) in enumerate(by_source.items(), start=1):
        points = finite(points)
        lines.append(Series(name, points, colour, faint=True))
        lines.append(Series(name, smoothed(points), colour))
    lines += validation_lines(run, list(by_source))
    return charts.line_chart(lines, x_label="step", y_label="Loss per token")


def validation_lines(run: RunFiles, trained: list[str]) -> list[Series]:
    """One line; where several sources were validated, one for each, dashed in the colour of the training on it."""
    dots = len(run.validation) <= 40
    sources = list(dict.fromkeys(name for record in run.validation for name in record.get("loss_by_source") or {}))
    if len(sources) < 2:
        return [Series("validation", [(record["step"], record["loss"]) for record in run.validation], 6, dots=dots)]
    colours = {name: number for number, name in enumerate(trained, start=1)}
    return [
        Series(
            f"validation, {name}",
            [(one["step"], one["loss_by_source"][name]) for one in run.validation if name in one["loss_by_source"]],
            colours.get(f"training, {name}", 6),
            dots=dots,
            dashed=True,
        )
        for name in sources
    ]


def lr_chart(run: RunFiles) -> Markup:
    """The learning rate over steps."""
    points = [(record["step"], record["lr"]) for record in run.train if record.get("lr") is not None]
    return charts.line_chart([Series("lr", points, 4)], x_label="step", y_label="Learning rate", from_zero=True)


def gate_records(run: RunFiles) -> list[Record]:
    return [record for record in run.train if record.get("gates")]


def gate_panels(run: RunFiles) -> Markup:
    """The gates of every head over steps, one small chart a layer."""
    records = gate_records(run)
    if not records:
        return Markup("")
    panels = []
    for layer, heads in enumerate(records[-1]["gates"][:GATE_LAYERS_SHOWN]):
        lines = [
            Series(f"head {head + 1}", [(record["step"], record["gates"][layer][head]) for record in records], 1)
            for head in range(len(heads))
        ]
        panels.append((f"adapted layer {layer + 1}", lines))
    return charts.small_multiples(panels, x_label="step")


def gate_map(run: RunFiles) -> Markup:
    """The last recorded gates, one row a layer (the highest layer first), one cell a head."""
    records = gate_records(run)
    if not records:
        return Markup("")
    gates = records[-1]["gates"]
    names = [f"layer {number}" for number in range(1, len(gates) + 1)]
    return charts.heat_map(gates[::-1], names[::-1], "head")
