"""Score tables for a terminal: plain text, ours first, the papers' rows beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TextIO

from mmadapter.evaluation.papers import SCIENCEQA_COLUMNS, PaperRow


def percent(value: float | None) -> str:
    """Two decimals, or "n/a" where there was nothing to score."""
    return "n/a" if value is None else f"{value:.2f}"


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
        [label, *(percent(accuracy.get(column)) for column in SCIENCEQA_COLUMNS)] for label, accuracy in ours.items()
    ]
    if papers:
        rows.append(None)
        rows += [[f"{row.model} [paper]", *(percent(value) for value in row.values)] for row in papers]
    return format_table(["accuracy, %", *SCIENCEQA_COLUMNS], rows)


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
    print("questions: " + ", ".join(f"{name} {counts[name]}" for name in SCIENCEQA_COLUMNS), file=file)
    unanswered = metrics["unanswered"]
    if unanswered:
        how = f"replaced by random choices ({metrics['fallback']})" if metrics.get("guessed") else "counted as wrong"
        print(f"unanswered: {unanswered}, {how}", file=file)
    for row in papers:
        if row.note:
            print(f"{row.model} [paper]: {row.note}", file=file)
    for remark in metrics.get("remarks") or ():  # type: ignore[attr-defined]
        print(f"note: {remark}", file=file)
