"""The short table at the end of a run: scores side by side, three captions, time, memory, what to try next."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten
from typing import Any

from mmadapter.files import read_json
from mmadapter.terminal import Display, duration, readable_bytes
from mmadapter.training.record import results_of

COLUMNS = ("NAT", "SOC", "LAN", "TXT", "IMG", "NO", "G1-6", "G7-12", "Avg")
SHOWN_CAPTIONS = SHOWN_ANSWERS = 3
SHOWN_CHARACTERS = 120
LABELS = {"host": "host alone", "text_only": "text-only adapter"}


def show_results(folder: Path, summary: Mapping[str, Any], display: Display) -> None:
    """Prints what a run folder holds: the table of scores, captions, time and memory, the report, two next commands."""
    show_scores(folder, summary, display)
    show_captions(folder, display)
    show_answers(folder, display)
    display.say(facts_line(summary))
    report = folder / "report.html"
    if report.is_file():
        display.say(f"report: {report}")
    display.say("next:\n  " + "\n  ".join(next_commands(folder, summary)))


def show_scores(folder: Path, summary: Mapping[str, Any], display: Display) -> None:
    """Accuracy by ScienceQA's eight columns and average, one row a run."""
    rows = [row for label, run in compared_runs(folder, summary) if (row := score_row(label, run)) is not None]
    if rows:
        display.table("ScienceQA-format accuracy, %", ["", *COLUMNS], rows)
    metrics = results_of(folder).get("scienceqa") or {}
    if not metrics.get("coverage", {}).get("complete", True):
        display.say(metrics["label"])


def compared_runs(folder: Path, summary: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Label and folder of every run whose scores belong into the table; the run itself comes last."""
    comparison = sorted(path for path in folder.glob("comparison/*") if path.is_dir())
    variants = sorted(path for path in folder.glob("variants/*") if path.is_dir())
    runs = [(LABELS.get(path.name, path.name), path) for path in (*comparison, *variants)]
    return [*runs, ("adapter with images" if summary.get("images") else "adapter", folder)]


def score_row(label: str, folder: Path) -> list[str] | None:
    """One row of the table; None for a run that was not scored."""
    metrics = results_of(folder).get("scienceqa")
    if metrics is None:
        return None
    accuracy = metrics["accuracy"]
    values = [accuracy.get(column) for column in COLUMNS]
    return [label, *("n/a" if value is None else f"{value:.2f}" for value in values)]


def show_captions(folder: Path, display: Display) -> None:
    """The captions of three test pictures beside the first reference, and the scores of all where they were scored."""
    file = folder / "eval" / "coco_caption" / "predictions.jsonl"
    if not file.is_file():
        return
    lines = [line for line in file.read_text(encoding="utf-8").split("\n") if line]  # a caption may hold U+2028
    rows = []
    for line in lines[:SHOWN_CAPTIONS]:
        row = json.loads(line)
        references = row.get("references") or [""]
        rows.append([Path(row["image"]).name if row.get("image") else str(row["id"]), row["output"], references[0]])
    columns = ["picture", "caption", "one of the references"]
    display.table("captions of test pictures", columns, rows, text_columns=columns)
    metrics = results_of(folder).get("coco_caption") or {}
    if "CIDEr" in metrics:
        display.say(f"{metrics['label']}: BLEU-4 {metrics['BLEU-4']:.5f}, CIDEr {metrics['CIDEr']:.5f}")


def show_answers(folder: Path, display: Display) -> None:
    """Three answers to instructions beside their references, and how many are equal to theirs."""
    metrics, file = results_of(folder).get("instruct"), folder / "eval" / "instruct" / "predictions.jsonl"
    if metrics is None or not file.is_file():
        return
    columns = ["instruction", "output", "reference"]
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:SHOWN_ANSWERS] if line]
    cells = [[shorten(row[name], SHOWN_CHARACTERS) for name in columns] for row in rows]
    display.table("answers to instructions", columns, cells, text_columns=columns)
    counts = metrics["counts"]
    display.say(f"equal to the reference: {counts['exact']} of {counts['answers']} answers")


def facts_line(summary: Mapping[str, Any]) -> str:
    """Wall time, training time, peak memory."""
    training = summary.get("training") or {}
    attempts = summary.get("attempts", 1)
    parts = [f"wall time {duration(summary['wall_seconds'])}" + (f" in {attempts} attempts" if attempts > 1 else "")]
    if training.get("steps"):
        parts.append(f"training {training['steps']} steps in {duration(training['seconds'])}")
    parts.append(f"peak memory {readable_bytes(summary['peak']['host_bytes'])}")
    if "gpu_bytes" in summary["peak"]:
        parts.append(f"{readable_bytes(summary['peak']['gpu_bytes'])} on the GPU")
    if several := summary["peak"].get("processes"):
        parts.append(f"of the largest of {len(several)} processes")
    return ", ".join(parts)


def next_commands(folder: Path, summary: Mapping[str, Any]) -> list[str]:
    """The two next commands to try."""
    variants = sorted((folder / "variants").glob("*"))
    folder = variants[0] if variants else folder
    if summary.get("experiment") == "quickstart":
        return [
            f"python eval.py task=scienceqa run={folder} task.limit=20",
            "python train.py experiment=scienceqa host.path=/models/llama-7b data.root=/data/scienceqa "
            "vision.pretrained=openai",
        ]
    task = next(iter(results_of(folder)), "scienceqa")
    return [f"python eval.py task={task} run={folder}", f"tensorboard --logdir {folder / 'tensorboard'}"]


def stored_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that came to its end; None before that."""
    return read_json(folder / "finished.json")
