"""Several runs side by side: their loss curves over each other and a small table (the papers' ablations)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mmadapter.files import write_atomically
from mmadapter.reports import charts
from mmadapter.reports.charts import Series, finite, smoothed
from mmadapter.reports.page import ReportedRun, render
from mmadapter.tasks.papers import ablation_of
from mmadapter.tasks.section import Row, Table, sections_of

LAST_STEPS = 20


def write_comparison(run: ReportedRun) -> Path:
    """Writes RUN/report.html about the runs in RUN/variants/.

    Training and validation curves overlaid, final numbers, the paper's table where there is one.
    """
    title = run.config.get("experiment") or run.folder.name
    training, validation = loss_lines(run.variants, "train"), loss_lines(run.variants, "validation")
    page = render(
        "comparison.html.jinja",
        title=title,
        folder=str(run.folder),
        training_chart=charts.line_chart(training, x_label="step", y_label="Training loss per token"),
        validation_chart=charts.line_chart(validation, x_label="step", y_label="Validation loss per token"),
        numbers=numbers_of(run.variants),
        paper=ablation_of(title, [one.folder for one in run.variants.values()]),
        config_text=run.config_text,
    )
    target = run.folder / "report.html"
    write_atomically(target, page)
    return target


def loss_lines(runs: Mapping[str, ReportedRun], kind: str) -> list[Series]:
    """One line a run; training losses smoothed, over their raw values where there are only two runs."""
    lines: list[Series] = []
    for number, (label, run) in enumerate(runs.items()):
        colour = number % 6 + 1
        records = run.train if kind == "train" else run.validation
        points = finite((record["step"], record["loss"]) for record in records)
        if kind == "train":
            if len(runs) <= 2:
                lines.append(Series(label, points, colour, faint=True))
            points = smoothed(points)
        lines.append(Series(label, points, colour, dots=kind == "validation" and len(points) <= 40))
    return lines


def numbers_of(runs: Mapping[str, ReportedRun]) -> Table:
    """Final numbers, one row a run: size, steps, losses, and what the tasks show at the top of a run's page."""
    sections = {label: sections_of(run.folder, run.config) for label, run in runs.items()}
    scores = {
        label: {tile.name: tile.value for section in own.values() for tile in section.tiles}
        for label, own in sections.items()
    }
    score_names = list(dict.fromkeys(name for own in scores.values() for name in own))
    rows = []
    for label, run in runs.items():
        losses = [record["loss"] for record in run.train if record["loss"] is not None][-LAST_STEPS:]
        training = sum(losses) / len(losses) if losses else None
        validation = run.validation[-1]["loss"] if run.validation else None
        cells = [
            f"{sum(row.get('parameters', 0) for row in run.trainable):,}",
            f"{run.train[-1]['step']:,}" if run.train else "–",
            *("–" if loss is None else f"{loss:.4f}" for loss in (training, validation, run.best_validation_loss)),
            *(scores[label].get(name, "–") for name in score_names),
        ]
        rows.append(Row([label, *cells]))
    covered = {f"{one.title}: {one.coverage}." for own in sections.values() for one in own.values() if one.coverage}
    notes = [*sorted(covered), f"Training loss: the average over the last {LAST_STEPS} recorded steps."]
    header = ["run", "trainable", "steps", "training loss", "validation loss", "lowest", *score_names]
    return Table(header, rows, notes=[" ".join(notes)], main=["validation loss", *score_names])
