"""Open instructions about pictures in a run's report: how many were followed, and some answers."""

from __future__ import annotations

from collections.abc import Sequence

from mmadapter.tasks.section import Card, Result, Section, percent, shortened

CARDS = 6


def report_section(results: Sequence[Result], made_world: bool) -> Section:
    """The answers of the last of `results`."""
    metrics = results[-1].metrics
    remark = ""
    if "followed" in metrics:
        remark = (
            f"{percent(metrics['followed'])} % of {metrics['counts']['answers']} instructions were followed; "
            f"{percent(metrics['named'])} % of the answers name the right word."
        )
    cards = [
        Card(
            question=shortened(row.get("instruction"), 300),
            picture=row.get("image"),
            answer=shortened(row.get("output"), 500),
            foot=[f"asked for: {row.get('reference')}", f"judged as: {row.get('outcome')}"],
        )
        for row in results[-1].rows[:CARDS]
    ]
    return Section("Open instructions about pictures", cards=cards, cards_remark=remark)
