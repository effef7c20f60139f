"""Score tables for a terminal: plain text, ours first, the papers' rows beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from mmadapter.config.scores import CAPTION_SCORES, JAVA_SCORES
from mmadapter.evaluation.scienceqa import COLUMNS
from mmadapter.tasks.papers import CaptionRow, PaperRow
from mmadapter.tasks.section import percent


def format_table(header: Sequence[str], rows: Sequence[Sequence[str] | None]) -> str:
    """Columns aligned with blanks: the first to the left, the others to the right; None draws a line."""
    filled = [row for row in rows if row is not None]
    widths = [max(len(row[column]) for row in [header, *filled]) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        return "  ".join(cells).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([line(header), rule, *(rule if row is None else line(row) for row in rows)])


def score_table(ours: Mapping[str, Mapping[str, float | None]], papers: Sequence[PaperRow] = ()) -> str:
    """ScienceQA accuracy in percent: `ours` maps a label to its nine columns; the papers' rows come below a line."""
    rows: list[Sequence[str] | None] = [
        [label, *(percent(accuracy.get(column)) for column in COLUMNS)] for label, accuracy in ours.items()
    ]
    if papers:
        rows.append(None)
        rows += [[f"{row.model} [paper]", *(percent(value) for value in row.values)] for row in papers]
    return format_table(["accuracy, %", *COLUMNS], rows)


def print_scores(metrics: Mapping[str, object], file: TextIO | None = None, *, papers: Sequence[PaperRow] = ()) -> None:
    """Prints one metrics.json: what was scored, the table, the counts, and what the reader must know."""
    accuracy, counts, coverage = metrics["accuracy"], metrics["counts"], metrics["coverage"]
    assert isinstance(accuracy, dict) and isinstance(counts, dict) and isinstance(coverage, dict)
    ours = {"this run" if coverage["complete"] else "this run (subset)": accuracy}
    likelihood = metrics.get("likelihood_accuracy")
    if isinstance(likelihood, dict):
        ours["  by option likelihood"] = likelihood
    print(f"ScienceQA, {metrics['label']}", file=file)
    print(score_table(ours, papers), file=file)
    print("questions: " + ", ".join(f"{name} {counts[name]}" for name in COLUMNS), file=file)
    unanswered = metrics["unanswered"]
    if unanswered:
        how = f"replaced by random choices ({metrics['fallback']})" if metrics.get("guessed") else "counted as wrong"
        print(f"unanswered: {unanswered}, {how}", file=file)
    for row in papers:
        if row.note:
            print(f"{row.model} [paper]: {row.note}", file=file)
    for remark in metrics.get("remarks") or ():  # type: ignore[attr-defined]
        print(f"note: {remark}", file=file)


def print_caption_scores(
    metrics: Mapping[str, Any], file: TextIO | None = None, *, papers: Sequence[CaptionRow] = ()
) -> None:
    """Prints one metrics.json of coco_caption: the scores as fractions, and beside the papers' rows times 100.

    A part of a split stands without the papers' rows: they are whole-split scores.
    """
    print(f"COCO captions, {metrics['label']}", file=file)
    scores = [name for name in (*CAPTION_SCORES, *JAVA_SCORES) if name in metrics]
    if scores:
        print(format_table(scores, [[f"{metrics[name]:.5f}" for name in scores]]), file=file)
    if "not_scored" in metrics:
        print(f"not scored: {metrics['not_scored']}", file=file)
    if metrics["empty"]:
        print(f"empty captions: {metrics['empty']}", file=file)
    for line in not_computed(metrics):
        print(line, file=file)
    if scores and metrics["coverage"]["complete"]:
        print(caption_table({"this run": metrics}, papers), file=file)
        for row in papers:
            if row.note:
                print(f"{row.model} [paper]: {row.note}", file=file)


def not_computed(metrics: Mapping[str, Any]) -> list[str]:
    """Which caption scores there are not, and why; those of the same reason in one line."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in metrics.get("not_computed", {}).items():
        by_reason.setdefault(reason, []).append(name)
    return [f"{' and '.join(names)}: not computed, {reason}" for reason, names in by_reason.items()]


def caption_table(ours: Mapping[str, Mapping[str, Any]], papers: Sequence[CaptionRow]) -> str:
    """BLEU-4 and CIDEr times 100: `ours` maps a label to its metrics; the papers' rows come below a line."""
    header = ["COCO captions, x 100", "PT pairs", "FT pairs", "BLEU-4", "CIDEr"]
    rows: list[Sequence[str] | None] = [
        [label, "", "", f"{100 * one['BLEU-4']:.1f}", f"{100 * one['CIDEr']:.1f}"] for label, one in ours.items()
    ]
    rows.append(None)
    rows += [
        [f"{row.model} [paper]", row.pretraining_pairs, row.fine_tuning_pairs, f"{row.bleu_4:.1f}", f"{row.cider:.1f}"]
        for row in papers
    ]
    return format_table(header, rows)
