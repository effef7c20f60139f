"""task=visual_instruct: open instructions about pictures, scored by a rule instead of a reference text."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmadapter.evaluation.generation import Answers
from mmadapter.evaluation.versions import versions

OUTCOMES = ("followed", "described", "wrong", "silent")


def outcome(output: str, item: Mapping[str, Any]) -> str:
    """What an answer is, by the words that it holds (`item`: answer, wrong, unasked); one of OUTCOMES.

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


def evaluate_visual_instructions(
    answers: Answers, task: Any, samples: Sequence[Any], folder: Path, root: str | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Greedy answers, each judged by `outcome`; percentages of all items, whole and by attribute.

    `named` is the rule of the issue (the right word and no other of its kind: followed or described), `followed` leaves
    captions out, which name every attribute whatever was asked.
    """
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
        "task": task.name,
        **shares(rows),
        "by_attribute": {
            attribute: shares([row for row in rows if row["attribute"] == attribute])
            for attribute in sorted({row["attribute"] for row in rows})
        },
        "counts": {"answers": len(rows), **Counter(row["outcome"] for row in rows)},
        "complete": task.limit is None and task.missing_image != "skip",
        "generation": dict(vars(task.generation)),
        "versions": versions(),
    }
    return metrics, rows


def shares(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Percent of the answers that followed, and that named the right word alone of its kind."""
    counts = Counter(row["outcome"] for row in rows)
    named = counts["followed"] + counts["described"]
    return {"followed": round(100 * counts["followed"] / len(rows), 2), "named": round(100 * named / len(rows), 2)}
