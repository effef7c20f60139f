"""report.html: one self-contained page about a run folder, from its files only (no network, pictures inlined)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mmadapter.config.scores import CAPTION_SCORES
from mmadapter.evaluation import charts
from mmadapter.evaluation.comparison import write_comparison
from mmadapter.evaluation.curves import gate_map, gate_panels, loss_chart, lr_chart
from mmadapter.evaluation.gallery import caption_cards, instruction_cards, question_cards
from mmadapter.evaluation.movement import movement_chart, movement_rows
from mmadapter.evaluation.papers import CAPTION_ROWS, SCIENCEQA, SCIENCEQA_COLUMNS, scienceqa_rows
from mmadapter.evaluation.run_files import RunFiles, read_run
from mmadapter.evaluation.scales import number_text
from mmadapter.evaluation.table import not_computed, percent
from mmadapter.files import write_atomically

LABELS = {"host": "Host alone", "text_only": "Text-only adapter"}


def write_report(folder: Path) -> Path:
    """Writes FOLDER/report.html from what the run folder holds so far, and returns its path.

    Works on unfinished runs: parts that have no files yet are left out.
    """
    run = read_run(folder)
    target = Path(folder) / "report.html"
    write_atomically(target, render("report.html.jinja", **content_of(run)))
    return target


def render(template: str, **content: Any) -> str:
    """Fills a template of this package; everything that is no Markup is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("mmadapter.evaluation", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"percent": percent, "grouped": lambda number: f"{number:,}", "number": number_text}
    return environment.get_template(template).render(**content)


def content_of(run: RunFiles) -> dict[str, Any]:
    """Everything that the template shows."""
    scored = run.evaluations.get("scienceqa")
    return {
        "title": run.config.get("experiment") or run.folder.name,
        "folder": str(run.folder),
        "finished": run.finished,
        "tiles": tiles(run),
        "scores": score_rows(run, "accuracy"),
        "likelihood": score_rows(run, "likelihood_accuracy"),
        "columns": SCIENCEQA_COLUMNS,
        "counts": scored.metrics.get("counts", {}) if scored else {},
        "score_label": scored.metrics.get("label", "") if scored else "",
        "score_notes": score_notes(run),
        "papers": scienceqa_rows(),
        "all_papers": SCIENCEQA,
        "picture_bars": picture_bars(run),
        "topics": topic_rows(run),
        "cards": question_cards(run, LABELS),
        "captions": caption_cards(run),
        "caption_scores": caption_score_rows(run),
        "caption_label": run.evaluations["coco_caption"].metrics.get("label", "")
        if "coco_caption" in run.evaluations
        else "",
        "caption_columns": CAPTION_SCORES,
        "caption_notes": caption_notes(run),
        "caption_papers": CAPTION_ROWS,
        "instructions": instruction_cards(run),
        "instruction_note": instruction_note(run),
        "loss_chart": loss_chart(run),
        "lr_chart": lr_chart(run),
        "movement_chart": movement_chart(run),
        "movement": movement_rows(run),
        "gate_panels": gate_panels(run),
        "gate_map": gate_map(run),
        "trainable": run.trainable,
        "trainable_total": sum(row.get("parameters", 0) for row in run.trainable),
        "config_text": run.config_text,
        "versions": version_rows(run.versions),
    }


def own_label(run: RunFiles) -> str:
    return "Adapter with images" if run.with_images else "Adapter"


def compared(run: RunFiles) -> list[tuple[str, RunFiles]]:
    """(label, run): the runs of comparison/ first, the host alone before all, this one last."""
    order = {name: place for place, name in enumerate(LABELS)}
    names = sorted(run.comparison, key=lambda name: (order.get(name, len(order)), name))
    return [*((LABELS.get(name, name), run.comparison[name]) for name in names), (own_label(run), run)]


def score_rows(run: RunFiles, key: str) -> list[tuple[str, Mapping[str, float | None]]]:
    """(label, columns) of every run here that was scored."""
    rows = []
    for label, one in compared(run):
        evaluation = one.evaluations.get("scienceqa")
        if evaluation and evaluation.metrics.get(key):
            rows.append((label, evaluation.metrics[key]))
    return rows


def score_notes(run: RunFiles) -> list[str]:
    """What the reader must know before comparing numbers."""
    scored = run.evaluations.get("scienceqa")
    if scored is None:
        return []
    notes = []
    if (run.config.get("data") or {}).get("made"):
        notes.append(
            "Our rows are scores on the made-up world of coloured shapes. The papers' rows are on the real ScienceQA "
            "test split: they stand here for orientation and cannot be compared with ours."
        )
    if not scored.metrics.get("coverage", {}).get("complete", True):
        notes.append(f"Ours is a {scored.metrics.get('label')}.")
    unanswered = scored.metrics.get("unanswered")
    if unanswered:
        notes.append(f"{unanswered} outputs named no single option and count as wrong.")
    if scored.metrics.get("guessed"):
        notes.append(f"Unanswered questions were guessed ({scored.metrics['fallback']}), to compare with old tables.")
    return notes


def caption_score_rows(run: RunFiles) -> list[tuple[str, Mapping[str, float]]]:
    """(label, scores as fractions) of every run here whose captions were scored."""
    found = [(label, one.evaluations.get("coco_caption")) for label, one in compared(run)]
    return [(label, one.metrics) for label, one in found if one and all(name in one.metrics for name in CAPTION_SCORES)]


def caption_notes(run: RunFiles) -> list[str]:
    """What the reader must know of the caption scores, or why there are none."""
    evaluation = run.evaluations.get("coco_caption")
    if evaluation is None:
        return []
    metrics, notes = evaluation.metrics, []
    if metrics.get("not_scored"):
        notes.append(f"Not scored: {metrics['not_scored']}.")
    elif not metrics.get("coverage", {}).get("complete", True):
        notes.append(f"Ours is a {metrics['label']}, not the {metrics['split']} score.")
    if not metrics.get("not_scored") and (run.config.get("data") or {}).get("made"):
        notes.append(
            "Our rows are scores on the made-up world. The papers' rows are on COCO, Karpathy's test split: they stand "
            "here for orientation and cannot be compared with ours."
        )
    if metrics.get("empty"):
        notes.append(f"{metrics['empty']} captions are empty.")
    return notes + [f"{line}." for line in not_computed(metrics)]


def instruction_note(run: RunFiles) -> str:
    """How many answers of the instruct task equal their reference, and what that is worth."""
    evaluation = run.evaluations.get("instruct")
    counts = evaluation.metrics.get("counts") if evaluation else None
    if evaluation is None or not counts:
        return ""
    share = percent(evaluation.metrics["exact_match"])
    note = (
        f"{counts['exact']} of {counts['answers']} answers ({share} %) equal their "
        "reference up to whitespace. That is a score where answers are exact, and no measure of free texts."
    )
    return note + (f" {counts['empty']} are empty." if counts["empty"] else "")


def picture_bars(run: RunFiles) -> list[tuple[str, Markup]]:
    """Bars of the questions with a picture, and of all, where several runs can be compared."""
    rows = score_rows(run, "accuracy")
    if len(rows) < 2:
        return []
    own = rows[-1][0]
    panels = [("Questions with a picture (IMG)", "IMG"), ("All questions (Avg)", "Avg")]
    return [
        (title, charts.bars([(label, values.get(column), 1 if label == own else 0) for label, values in rows]))
        for title, column in panels
    ]


def topic_rows(run: RunFiles) -> dict[str, Any]:
    """Accuracy by topic of every scored run: {"labels": [...], "rows": [(topic, count, [percent, ...]), ...]}."""
    found = [
        (label, one.evaluations["scienceqa"].metrics.get("by_topic") or {})
        for label, one in compared(run)
        if "scienceqa" in one.evaluations
    ]
    topics = sorted({topic for _, by_topic in found for topic in by_topic})
    rows = []
    for topic in topics:
        entries = [by_topic.get(topic) for _, by_topic in found]
        count = max(entry["count"] for entry in entries if entry)
        rows.append((topic, count, [entry["accuracy"] if entry else None for entry in entries]))
    return {"labels": [label for label, _ in found], "rows": rows}


def tiles(run: RunFiles) -> list[tuple[str, str, str]]:
    """The numbers at the top: (name, value, remark)."""
    found: list[tuple[str, str, str]] = []
    accuracy = run.accuracy()
    if accuracy:
        found.append(("ScienceQA average", percent(accuracy.get("Avg")), "% of questions right"))
        if accuracy.get("IMG") is not None:
            found.append(("With a picture", percent(accuracy["IMG"]), "% right, column IMG"))
    if run.best_validation_loss is not None:
        found.append(("Validation loss", f"{run.best_validation_loss:.4f}", "the lowest, per token"))
    if run.trainable:
        total = sum(row.get("parameters", 0) for row in run.trainable)
        share = sum(row.get("share", 0) for row in run.trainable)
        found.append(("Trainable", f"{total:,}", f"parameters, {100 * share:.2g} % of the host's"))
    steps = run.train[-1]["step"] if run.train else None
    seconds = run.summary.get("wall_seconds") or (run.train[-1].get("seconds") if run.train else None)
    if seconds is not None:
        remark = f"{steps:,} training steps" if steps else "no training"
        if (attempts := run.summary.get("attempts", 1)) > 1:
            remark += f"; sum over {attempts} attempts"
        found.append(("Wall time" if run.finished else "Training time", duration(seconds), remark))
    peak = run.summary.get("peak") or {}
    if peak.get("host_bytes"):
        of = f"of the largest of {len(peak['processes'])} processes" if peak.get("processes") else "of the process"
        remark = f"and {gigabytes(peak['gpu_bytes'])} on the GPU, {of}" if peak.get("gpu_bytes") else of
        found.append(("Peak memory", gigabytes(peak["host_bytes"]), remark))
    return found


def duration(seconds: float) -> str:
    """4 s, 3 min 12 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.0f} MB"


def version_rows(versions: Mapping[str, Any]) -> list[tuple[str, str]]:
    """versions.json as (name, value), packages among them."""
    rows: list[tuple[str, str]] = []
    for name, value in versions.items():
        if isinstance(value, Mapping):
            rows += version_rows(value)
        elif value is not None:
            rows.append((name, value if isinstance(value, str) else json.dumps(value)))
    return rows


__all__ = ["render", "write_comparison", "write_report"]
