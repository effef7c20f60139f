"""Several runs side by side: their loss curves over each other and a small table (the papers' ablations)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmadapter.evaluation import charts
from mmadapter.evaluation.charts import Series
from mmadapter.evaluation.papers import ABLATION_EPOCHS, ABLATION_INIT, ABLATION_LAYERS
from mmadapter.evaluation.run_files import RunFiles, read_run
from mmadapter.evaluation.scales import finite, smoothed
from mmadapter.evaluation.table import percent
from mmadapter.files import write_atomically

LAST_STEPS = 20
PAPER_TABLES: dict[str, tuple[str, list[str], list[list[str]]]] = {
    "ablation_layers": (
        "adapted layers",
        ["layers", "validation accuracy, %"],
        [[str(layers), percent(accuracy)] for layers, accuracy in ABLATION_LAYERS.items()],
    ),
    "ablation_init": (
        "attention initialisation",
        ["initialisation", "validation accuracy, %"],
        [[name, percent(accuracy)] for name, accuracy in ABLATION_INIT.items()],
    ),
    "ablation_epochs": (
        "epochs",
        ["epochs", "training loss", "validation loss", "validation accuracy, %"],
        [[str(epochs), f"{a:.3f}", f"{b:.3f}", percent(c)] for epochs, (a, b, c) in ABLATION_EPOCHS.items()],
    ),
}


def write_comparison(folder: Path) -> Path:
    """Writes FOLDER/report.html and FOLDER/loss_curves.svg about the runs in FOLDER/variants/."""
    run = read_run(folder)
    title = run.config.get("experiment") or run.folder.name
    return compare_runs(run.variants, Path(folder) / "report.html", title=title, config_text=run.config_text)


def compare_folders(folders: Mapping[str, Path], out: Path, *, title: str = "Comparison") -> Path:
    """Writes one page (and `loss_curves.svg` beside it) about several run folders, given by label."""
    return compare_runs({label: read_run(folder) for label, folder in folders.items()}, out, title=title)


def compare_runs(runs: Mapping[str, RunFiles], out: Path, *, title: str, config_text: str = "") -> Path:
    """The page itself: training and validation curves overlaid, final numbers, the paper's table where there is one."""
    from mmadapter.evaluation.report import render

    training, validation = loss_series(runs, "train"), loss_series(runs, "validation")
    key = next((key for key in PAPER_TABLES if title.startswith(key)), None)
    write_atomically(out.with_name("loss_curves.svg"), standalone_svg(training))
    page = render(
        "comparison.html.jinja",
        title=title,
        folder=str(out.parent),
        training_chart=charts.line_chart(training, x_label="step", y_label="Training loss per token"),
        validation_chart=charts.line_chart(validation, x_label="step", y_label="Validation loss per token"),
        rows=[table_row(label, run) for label, run in runs.items()],
        paper=PAPER_TABLES.get(key) if key else None,
        config_text=config_text,
    )
    write_atomically(out, page)
    return out


def loss_series(runs: Mapping[str, RunFiles], kind: str) -> list[Series]:
    """One line a run; training losses smoothed, over their raw values where there are only two runs."""
    lines: list[Series] = []
    for number, (label, run) in enumerate(runs.items()):
        colour = number % 6 + 1
        records = run.train if kind == "train" else run.validation
        points = finite([(record["step"], record["loss"]) for record in records])
        if kind == "train":
            if len(runs) <= 2:
                lines.append(Series(label, points, colour, faint=True))
            points = smoothed(points)
        lines.append(Series(label, points, colour, dots=kind == "validation" and len(points) <= 40))
    return lines


def table_row(label: str, run: RunFiles) -> dict[str, Any]:
    """Final numbers of one run."""
    accuracy = run.accuracy() or {}
    return {
        "label": label,
        "parameters": sum(row.get("parameters", 0) for row in run.trainable),
        "steps": run.train[-1]["step"] if run.train else None,
        "training": mean_of_last([record["loss"] for record in run.train]),
        "validation": run.validation[-1]["loss"] if run.validation else None,
        "best": run.best_validation_loss,
        "accuracy": accuracy.get("Avg"),
        "images": accuracy.get("IMG"),
        "label_of_score": run.evaluations["scienceqa"].metrics.get("label", "") if accuracy else "",
    }


def mean_of_last(values: list[float], count: int = LAST_STEPS) -> float | None:
    """The average of the last recorded values, None where there is none."""
    return sum(values[-count:]) / len(values[-count:]) if values else None


def standalone_svg(series: list[Series]) -> str:
    """The training curves as a picture file of their own, with legend and fixed colours."""
    return charts.standalone(series, x_label="step", y_label="training loss per token")
