"""Instructions in a run's report: how many answers equal their reference, and some of them."""

from __future__ import annotations

from collections.abc import Sequence

from mmadapter.tasks.section import Card, Result, Section, percent, shortened

CARDS = 6


def report_section(results: Sequence[Result], made_world: bool) -> Section:
    """The answers of the last of `results`."""
    own = results[-1]
    remark = ""
    if counts := own.metrics.get("counts"):
        remark = (
            f"{counts['exact']} of {counts['answers']} answers ({percent(own.metrics['exact_match'])} %) equal their "
            "reference up to whitespace. That is a score where answers are exact, and no measure of free texts."
        )
        remark += f" {counts['empty']} are empty." if counts["empty"] else ""
    cards = [
        Card(
            question=shortened(row.get("instruction"), 300),
            context=shortened(row.get("input"), 300),
            answer=shortened(row.get("output"), 500),
            verdict="✓ equal to the reference" if row.get("exact") else "",
            foot=[] if row.get("exact") else [f"reference: {shortened(row.get('reference'), 300)}"],
        )
        for row in own.rows[:CARDS]
    ]
    return Section("Answers to instructions", cards=cards, cards_remark=remark)
