"""COCO captions in a run's report: scores beside the compared runs and the papers, captioned pictures."""

from __future__ import annotations

from collections.abc import Sequence

from mmadapter.config.scores import CAPTION_SCORES
from mmadapter.evaluation.table import not_computed
from mmadapter.tasks.papers import CAPTION_ROWS
from mmadapter.tasks.section import Card, Result, Row, Section, Table, percent, shortened

CARDS, REFERENCES = 6, 5


def report_section(results: Sequence[Result], made_world: bool) -> Section:
    """Everything about the last of `results`, and its scores beside those of the others."""
    own, metrics = results[-1], results[-1].metrics
    rows = [
        Row(
            [one.label, "", "", *(percent(100 * one.metrics[name]) for name in CAPTION_SCORES)],
            "own" if one is own else "",
        )
        for one in results
        if all(name in one.metrics for name in CAPTION_SCORES)
    ]
    tables = []
    if rows:
        about = (
            "The papers, on COCO, Karpathy's test split; PT and FT: image-text pairs of pre-training and fine-tuning"
        )
        rows.append(Row([about], "between"))
        for paper in CAPTION_ROWS:
            printed = {"BLEU-4": str(paper.bleu_4), "CIDEr": str(paper.cider)}
            cells = [
                paper.pretraining_pairs,
                paper.fine_tuning_pairs,
                *(printed.get(name, "") for name in CAPTION_SCORES),
            ]
            rows.append(Row([paper.model + " *" * bool(paper.note), *cells], "paper", paper.source))
        header = ["score × 100", "PT pairs", "FT pairs", *CAPTION_SCORES]
        notes = [f"* {paper.model}: {paper.note}." for paper in CAPTION_ROWS if paper.note]
        tables.append(Table(header, rows, f"Scores: {metrics.get('label', '')}", notes=notes))
    notes = []
    if metrics.get("not_scored"):
        notes.append(f"Not scored: {metrics['not_scored']}.")
    elif not metrics.get("coverage", {}).get("complete", True):
        notes.append(f"Ours is a {metrics['label']}, not the {metrics['split']} score.")
    if not metrics.get("not_scored") and made_world:
        notes.append(
            "Our rows are scores on the made-up world. The papers' rows are on COCO, Karpathy's test split: they stand "
            "here for orientation and cannot be compared with ours."
        )
    if metrics.get("empty"):
        notes.append(f"{metrics['empty']} captions are empty.")
    notes += [f"{line}." for line in not_computed(metrics)]
    cards = []
    for row in own.rows[:CARDS]:
        references = [shortened(text, 120) for text in row.get("references") or ()]
        foot = ["references:", *(f"– {text}" for text in references[:REFERENCES])]
        if len(references) < 2:
            foot = [f"reference: {text}" for text in references]
        cards.append(Card(answer=row.get("output") or "", picture=row.get("image"), foot=foot))
    return Section(
        "Captions of test pictures", coverage=metrics.get("label", ""), tables=tables, notes=notes, cards=cards
    )
