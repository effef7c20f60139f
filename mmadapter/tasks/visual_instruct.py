"""Open instructions about pictures, scored by a rule for the answer's words instead of a reference text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from mmadapter.data.samples import Sample
from mmadapter.settings import to_plain
from mmadapter.tasks.section import Card, percent
from mmadapter.tasks.settings import VisualInstructTaskSettings
from mmadapter.tasks.task import AnswerRow, Answers, Metrics, Scored, Task


class AnswersCounted(TypedDict):
    answers: int


class VisualInstructMetrics(Metrics, total=False):
    followed: float
    named: float
    counts: AnswersCounted


class VisualInstructRow(AnswerRow, total=False):
    outcome: str


class VisualInstruct(Task[VisualInstructTaskSettings]):
    """Percentages of all items, whole and by attribute: `named` is the share of answers with the right word and no
    other of its kind (followed or described), `followed` leaves captions out, which name every attribute whatever was
    asked."""

    TITLE = "Open instructions about pictures"
    SCORES = MAIN_SCORES = ("followed", "named")
    IN_SUMMARY = ("counts",)
    METRICS, ROW = VisualInstructMetrics, VisualInstructRow

    def score(self, samples: Sequence[Sample], answers: Answers) -> Scored:
        rows = [
            {
                "id": sample.id,
                "prompt": sample.prompt,
                "instruction": sample.meta["instruction"],
                "image": None if sample.image is None else str(sample.image),
                "output": output,
                "reference": sample.meta["answer"],
                "attribute": sample.meta["attribute"],
                "outcome": outcome(output, sample.meta),
            }
            for sample, output in zip(samples, answers.texts, strict=True)
        ]
        metrics = {
            **shares(rows),
            "by_attribute": {
                attribute: shares([row for row in rows if row["attribute"] == attribute])
                for attribute in sorted({row["attribute"] for row in rows})
            },
            "counts": {"answers": len(rows), **Counter(row["outcome"] for row in rows)},
            "complete": self.settings.limit is None and self.settings.missing_image != "skip",
            "generation": to_plain(self.settings.generation),
        }
        return Scored(metrics, rows)

    @classmethod
    def remark(cls, metrics: Mapping[str, Any]) -> str:
        if not {"followed", "named", "counts"} <= metrics.keys():
            return ""
        return (
            f"{percent(metrics['followed'])} % of {metrics['counts']['answers']} instructions were followed; "
            f"{percent(metrics['named'])} % of the answers name the right word."
        )

    @classmethod
    def card(cls, row: Mapping[str, Any]) -> Card:
        foot = [f"asked for: {row.get('reference')}", f"judged as: {row.get('outcome')}"]
        return replace(super().card(row), foot=foot)


def outcome(output: str, item: Mapping[str, Any]) -> str:
    """What an answer is, by the words that it holds (`item`: answer, wrong, unasked).

    * followed: the asked word, no other value of its attribute, and at most one that nobody asked for ("a red star").
    * described: the same with two or more that nobody asked for, as a caption has them.
    * wrong: another value of the asked attribute.
    * silent: no value of the asked attribute at all.
    """
    words = set(re.findall(r"[a-z]+", output.lower()))
    if words & {word.lower() for word in item["wrong"]}:
        return "wrong"
    if item["answer"].lower() not in words:
        return "silent"
    unasked = words & {word.lower() for word in item["unasked"]}
    return "described" if len(unasked) > 1 else "followed"


def shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Percent of the answers that followed, and that named the right word alone of its kind."""
    counts = Counter(row["outcome"] for row in rows)
    named = counts["followed"] + counts["described"]
    return {"followed": round(100 * counts["followed"] / len(rows), 2), "named": round(100 * named / len(rows), 2)}
