"""Instructions in Alpaca's format, answered as V1 samples them; counted where an answer equals its reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmadapter.data.samples import Sample
from mmadapter.settings import to_plain
from mmadapter.tasks.section import Card, percent, shortened
from mmadapter.tasks.settings import InstructTaskSettings
from mmadapter.tasks.task import Answers, Scored, Task


class Instruct(Task[InstructTaskSettings]):
    """`exact_match` (percent) is the share of answers that equal the reference up to whitespace: a score where answers
    are exact, as in the made-up world, and no measure of free texts."""

    TITLE = "Answers to instructions"
    SCORES = MAIN_SCORES = ("exact_match",)
    IN_SUMMARY = ("counts",)

    def score(self, samples: Sequence[Sample], answers: Answers) -> Scored:
        rows = [
            {
                "id": sample.id,
                "prompt": sample.prompt,
                "instruction": sample.meta["instruction"],
                "input": sample.meta["input"],
                "output": output,
                "reference": sample.meta["output"],
                "exact": output.split() == sample.meta["output"].split(),
            }
            for sample, output in zip(samples, answers.texts, strict=True)
        ]
        exact = sum(row["exact"] for row in rows)
        metrics = {
            "split": self.settings.split,
            "exact_match": round(100 * exact / len(rows), 2),
            "counts": {"answers": len(rows), "exact": exact, "empty": sum(not text for text in answers.texts)},
            "complete": self.settings.limit is None,
            "generation": to_plain(self.settings.generation),
            "seed": self.settings.seed,
        }
        return Scored(metrics, rows)

    @classmethod
    def remark(cls, metrics: Mapping[str, Any]) -> str:
        counts = metrics.get("counts")
        if not counts:
            return ""
        empty = f" {counts['empty']} are empty." if counts["empty"] else ""
        return (
            f"{counts['exact']} of {counts['answers']} answers ({percent(metrics['exact_match'])} %) equal their "
            f"reference up to whitespace. That is a score where answers are exact, and no measure of free texts.{empty}"
        )

    @classmethod
    def card(cls, row: Mapping[str, Any]) -> Card:
        return Card(
            question=shortened(row.get("instruction"), 300),
            context=shortened(row.get("input"), 300),
            answer=shortened(row.get("output"), 500),
            verdict="✓ equal to the reference" if row.get("exact") else "",
            foot=[] if row.get("exact") else [f"reference: {shortened(row.get('reference'), 300)}"],
        )
