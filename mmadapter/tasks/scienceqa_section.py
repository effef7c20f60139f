"""ScienceQA in a run's report: accuracy beside the compared runs and the papers, topics, answered questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mmadapter.evaluation.scienceqa import COLUMNS
from mmadapter.tasks.papers import SCIENCEQA, PaperRow, scienceqa_rows
from mmadapter.tasks.section import Bars, Card, Choice, Result, Row, Section, Table, Tile, percent, shortened

CARDS = 12
ABOUT_COLUMNS = (
    "NAT, SOC, LAN: natural, social and language science. TXT: the question has a textual context; IMG: it has a "
    "picture; NO: neither (a question with both counts in TXT and in IMG)."
)


def report_section(results: Sequence[Result], made_world: bool) -> Section:
    """Everything about the last of `results`, and its scores beside those of the others."""
    own = results[-1]
    metrics, accuracy = own.metrics, own.metrics.get("accuracy") or {}
    scored = [one for one in results if one.metrics.get("accuracy")]
    likely = [one for one in results if one.metrics.get("likelihood_accuracy")]
    tables = []
    if scored:
        papers = scienceqa_rows()
        counts = metrics.get("counts") or {}
        rows = [accuracy_row(one.label, one.metrics["accuracy"], one is own) for one in scored]
        rows += [Row(["questions", *(str(counts[name]) for name in COLUMNS)], "count")] if counts else []
        rows += [Row(["The papers, on the real ScienceQA test split"], "between"), *map(paper_row, papers)]
        title = f"By subject, context and grade: {metrics.get('label', '')}"
        notes = [*remarks(metrics, made_world), ABOUT_COLUMNS, *paper_notes(papers)]
        tables.append(accuracy_table(title, rows, notes=notes))
        sources = f"Sources: {'; '.join(dict.fromkeys(row.source for row in SCIENCEQA))}."
        published = [paper_row(row) for row in SCIENCEQA]
        title, notes = "All published rows, with sources", [*paper_notes(SCIENCEQA), sources]
        tables.append(accuracy_table(title, published, is_folded=True, notes=notes))
    if likely:
        title = "The same questions, scored by the most likely option instead of the generated answer"
        rows = [accuracy_row(one.label, one.metrics["likelihood_accuracy"]) for one in likely]
        tables.append(accuracy_table(title, rows, is_folded=True))
    tables += topic_tables(results)
    bars = []
    if len(scored) > 1:
        panels = {"Questions with a picture (IMG), % right": "IMG", "All questions (Avg), % right": "Avg"}
        bars = [
            Bars(title, [(one.label, one.metrics["accuracy"].get(column), one is own) for one in scored])
            for title, column in panels.items()
        ]
    tiles = [Tile("ScienceQA average", percent(accuracy.get("Avg")), "% of questions right")] if accuracy else []
    if accuracy.get("IMG") is not None:
        tiles.append(Tile("With a picture", percent(accuracy["IMG"]), "% right, column IMG"))
    return Section(
        "ScienceQA",
        tiles=tiles,
        coverage=metrics.get("label", ""),
        bars=bars,
        tables=tables,
        cards=question_cards(results),
        cards_title="Test questions",
        cards_remark="Right and wrong answers of this run, one topic after the other.",
    )


def accuracy_table(title: str, rows: Sequence[Row], **options: Any) -> Table:
    return Table(["accuracy, %", *COLUMNS], rows, title, **options)


def accuracy_row(label: str, accuracy: Mapping[str, float | None], is_own: bool = False) -> Row:
    return Row([label, *(percent(accuracy.get(name)) for name in COLUMNS)], "own" if is_own else "")


def paper_row(row: PaperRow) -> Row:
    source = f"{row.source}; {row.note}" if row.note else row.source
    return Row([row.model + " *" * bool(row.note), *map(percent, row.values)], "paper", source)


def paper_notes(rows: Iterable[PaperRow]) -> list[str]:
    return [f"* {row.model}: {row.note}." for row in rows if row.note]


def remarks(metrics: Mapping[str, Any], made_world: bool) -> list[str]:
    """What the reader must know before comparing numbers."""
    found = []
    if made_world:
        found.append(
            "Our rows are scores on the made-up world of coloured shapes. The papers' rows are on the real ScienceQA "
            "test split: they stand here for orientation and cannot be compared with ours."
        )
    if not metrics.get("coverage", {}).get("complete", True):
        found.append(f"Ours is a {metrics.get('label')}.")
    if unanswered := metrics.get("unanswered"):
        found.append(f"{unanswered} outputs named no single option and count as wrong.")
    if metrics.get("guessed"):
        found.append(f"Unanswered questions were guessed ({metrics['fallback']}), to compare with old tables.")
    return found


def topic_tables(results: Sequence[Result]) -> list[Table]:
    """Accuracy by topic, one column a run; no table where the questions have no topics."""
    by_run = [one.metrics.get("by_topic") or {} for one in results]
    rows = []
    for topic in sorted({topic for by_topic in by_run for topic in by_topic}):
        entries = [by_topic.get(topic) for by_topic in by_run]
        count = max(entry["count"] for entry in entries if entry)
        rows.append(Row([topic, str(count), *(percent(entry and entry["accuracy"]) for entry in entries)]))
    header = ["topic", "questions", *(one.label for one in results)]
    return [Table(header, rows, "By topic", is_folded=True)] if rows else []


def question_cards(results: Sequence[Result]) -> list[Card]:
    """Some questions, at most half of them answered wrong, spread over topics; those with a picture first."""
    rows = [row for row in results[-1].rows if row.get("image")] or results[-1].rows
    wrong = one_topic_after_the_other([row for row in rows if not row.get("correct")])[: CARDS // 2]
    right = one_topic_after_the_other([row for row in rows if row.get("correct")])[: CARDS - len(wrong)]
    others = {one.label: {row["id"]: row for row in one.rows} for one in results[:-1]}
    return [question_card(row, others) for row in [*right, *wrong]]


def one_topic_after_the_other(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The rows in an order that takes one of each topic in turn."""
    turns: dict[str, int] = {}
    keyed = []
    for row in rows:
        topic = row.get("topic") or ""
        turns[topic] = turns.get(topic, 0) + 1
        keyed.append((turns[topic], row))
    return [row for _, row in sorted(keyed, key=lambda item: item[0])]


def question_card(row: Mapping[str, Any], others: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Card:
    """One question with its options; small below what the model said, and what the compared runs (`others`) chose."""
    foot = []
    if row.get("output") is not None:  # on one line, without control characters
        said = "".join(sign if sign.isprintable() else " " for sign in row["output"])
        foot.append(f"said: “{shortened(' '.join(said.split()), 80)}”")
    for label, answers in others.items():
        if row["id"] in answers:
            chosen = answers[row["id"]]["prediction"]
            foot.append(f"{label}: {'no answer' if chosen is None else chr(ord('A') + chosen)}")
    grade = (row.get("grade") or "").replace("grade", "grade ")
    foot.append(", ".join(part for part in (f"question {row['id']}", row.get("subject"), grade) if part))
    choices = [
        Choice(text, index == row["answer"], index == row["prediction"]) for index, text in enumerate(row["choices"])
    ]
    return Card(
        question=row.get("question") or "",
        context=shortened(row.get("hint"), 180),
        picture=row.get("image"),
        choices=choices,
        verdict="✓ right" if row.get("correct") else "✗ wrong",
        is_right=bool(row.get("correct")),
        foot=foot,
    )
