"""Answers to instructions of any layout: free text against its references, multiple choice by the parsed option."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict

from mmadapter.data.samples import Sample
from mmadapter.settings import to_plain
from mmadapter.tasks.scienceqa_scores import parse_answer
from mmadapter.tasks.section import Card, Choice, percent, shortened
from mmadapter.tasks.settings import InstructTaskSettings
from mmadapter.tasks.task import AnswerRow, Answers, Metrics, Scored, Task
from mmadapter.tasks.text_scores import bleu, rouge_l, word_f1

MOST_REFERENCES = 5  # of an answer that are shown


class ChoicesCounted(TypedDict, total=False):
    choices: int
    right: int
    unanswered: int


class InstructCounts(ChoicesCounted):
    answers: int
    exact: int
    empty: int


class InstructMetrics(Metrics, total=False):
    accuracy: float
    exact_match: float
    counts: InstructCounts
    BLEU_counts: str


InstructScores = TypedDict("InstructScores", {"F1": float, "ROUGE-L": float}, total=False)


class InstructRow(AnswerRow, InstructScores, total=False):
    input: str | None
    choices: list[str]
    answer: int
    prediction: int | None
    correct: bool
    exact: bool
    references: list[str]


class Instruct(Task[InstructTaskSettings]):
    """All in percent. Items with choices have `accuracy`: the option that the answer names, by its letter or text.

    The others have `exact_match` (equal to a reference up to whitespace: a score where answers are exact, as in the
    made-up world), `F1` of words, `ROUGE-L` and `BLEU`, against the best of their references.
    """

    TITLE = "Answers to instructions"
    SCORES = ("accuracy", "exact_match", "F1", "ROUGE-L", "BLEU")
    MAIN_SCORES = ("exact_match", "accuracy", "F1")
    IN_SUMMARY = ("counts",)
    METRICS, ROW = InstructMetrics, InstructRow
    PACKAGES = ("sacrebleu",)

    def score(self, samples: Sequence[Sample], answers: Answers) -> Scored:
        rows = [self.row(sample, output) for sample, output in zip(samples, answers.texts, strict=True)]
        chosen = [row for row in rows if "choices" in row]
        free = [row for row in rows if "choices" not in row]
        metrics: dict[str, Any] = {"split": self.settings.split}
        counts = {"answers": len(rows), "exact": sum(row.get("exact", False) for row in rows)}
        if chosen:
            counts |= {"choices": len(chosen), "right": sum(row["correct"] for row in chosen)}
            counts["unanswered"] = sum(row["prediction"] is None for row in chosen)
            metrics["accuracy"] = round(100 * counts["right"] / len(chosen), 2)
        if free:
            metrics["exact_match"] = round(100 * counts["exact"] / len(free), 2)
            for name in ("F1", "ROUGE-L"):
                metrics[name] = round(sum(row[name] for row in free) / len(free), 2)
            score, by = bleu([row["output"] for row in free], [row["references"] for row in free])
            metrics |= {"BLEU": None if score is None else round(score, 2), "BLEU_counts": by}
        counts["empty"] = sum(not text for text in answers.texts)
        metrics |= {
            "counts": counts,
            "complete": self.settings.limit is None,
            "generation": to_plain(self.settings.generation),
            "seed": self.settings.seed,
        }
        return Scored(metrics, rows)

    def judged(self, sample: Sample, answer: str) -> dict[str, Any]:
        row = self.row(sample, answer)
        own = {"question": f"{row['instruction']} {row['input']}".strip(), "right": row.get("exact") or None}
        if "choices" in row:
            own["right"] = row["correct"]
        return super().judged(sample, answer) | own

    def row(self, sample: Sample, output: str) -> dict[str, Any]:
        """One line of predictions.jsonl, scored."""
        meta = sample.meta
        row: dict[str, Any] = {
            "id": sample.id,
            "prompt": sample.prompt,
            "instruction": meta["instruction"],
            "input": meta.get("input", ""),
            "output": output,
            "reference": meta["output"],
            "image": None if sample.image is None else str(sample.image),
        }
        if meta.get("choices"):
            prediction = parse_answer(output, meta["choices"])
            row |= {"choices": list(meta["choices"]), "answer": meta["answer"], "prediction": prediction}
            return row | {"correct": prediction == meta["answer"]}
        references = list(meta.get("references") or [meta["output"]])
        row |= {"references": references, "exact": any(output.split() == one.split() for one in references)}
        row["F1"] = round(100 * word_f1(output, references), 2)
        return row | {"ROUGE-L": round(100 * rouge_l(output, references), 2)}

    @classmethod
    def remark(cls, metrics: Mapping[str, Any]) -> str:
        counts, parts = metrics.get("counts"), []
        if not counts:
            return ""
        if {"choices", "right", "unanswered"} <= counts.keys():
            parts.append(
                f"{counts['right']} of {counts['choices']} questions were answered right "
                f"({percent(metrics.get('accuracy'))} %); {counts['unanswered']} answers name no single option."
            )
        if "exact_match" in metrics:
            parts.append(
                f"{counts['exact']} of {counts['answers'] - counts.get('choices', 0)} answers "
                f"({percent(metrics['exact_match'])} %) equal their reference up to whitespace. That is a score where "
                "answers are exact, and no measure of free texts."
            )
        if metrics.get("BLEU_counts") and metrics.get("BLEU") is None:
            parts.append(
                f"BLEU is left out: it counts runs of four {metrics['BLEU_counts']}, and no reference has so many."
            )
        if metrics.get("BLEU_counts") == "characters":
            parts.append("BLEU, F1 and ROUGE-L count characters: the language has no blanks between words.")
        if counts["empty"]:
            parts.append(f"{counts['empty']} are empty.")
        return " ".join(parts)

    @classmethod
    def card(cls, row: Mapping[str, Any]) -> Card:
        own = Card(
            question=shortened(row.get("instruction"), 300),
            context=shortened(row.get("input"), 300),
            picture=row.get("image"),
            answer=shortened(row.get("output"), 500),
        )
        if choices := row.get("choices"):
            options = [
                Choice(text, n == row.get("answer"), n == row.get("prediction")) for n, text in enumerate(choices)
            ]
            is_right = bool(row.get("correct"))
            return replace(own, choices=options, verdict="✓ right" if is_right else "✗ wrong", is_right=is_right)
        if row.get("exact"):
            return replace(own, verdict="✓ equal to the reference")
        references = row.get("references") or [row.get("reference") or ""]
        scores = [f"{name} {percent(row[name])} %" for name in ("F1", "ROUGE-L") if name in row]
        foot = [f"reference: {shortened(text, 300)}" for text in references[:MOST_REFERENCES]]
        return replace(own, foot=[*foot, *([", ".join(scores)] if scores else [])])
