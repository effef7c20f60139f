"""What scienceqa and instruct ask of an assistant, and the lines and numbers they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmadapter.evaluation.generation import Answers
from mmadapter.evaluation.questions import Question, questions_of_samples, split_size
from mmadapter.evaluation.scienceqa import parse_answer, random_choice, score, topic_accuracy
from mmadapter.evaluation.versions import Answered, versions


def evaluate_scienceqa(answers: Answers, task: Any, samples: Sequence[Any], folder: Path, root: str | None) -> Answered:
    """Greedy answers through the parser and, where asked, a second score by option likelihood."""
    questions = questions_of_samples(samples)
    outputs = answers.texts
    predictions = {
        sample.id: parse_answer(output, questions[sample.id].choices)
        for sample, output in zip(samples, outputs, strict=True)
    }
    likely: dict[str, int | None] = {}
    if answers.options is not None:
        likely = {sample.id: option for sample, option in zip(samples, answers.options, strict=True)}
    size = known_split_size(task, len(samples), root)
    metrics = scienceqa_metrics(task, questions, predictions, size)
    if likely:
        metrics["likelihood_accuracy"] = score(questions, likely, split=task.split, split_size=size).accuracy
    rows = []
    for sample, output in zip(samples, outputs, strict=True):
        row = prediction_row(task, questions[sample.id], output, predictions[sample.id])
        row["likelihood_prediction"] = likely.get(sample.id)
        row["prompt"] = sample.prompt
        row["hint"] = sample.meta.get("hint", "")
        row["image"] = None if sample.image is None else str(sample.image)
        rows.append(row)
    return metrics, rows


def known_split_size(task: Any, samples: int, root: str | None) -> int | None:
    """How many questions the whole split has: from pid_splits.json; without one all samples that were read, unless
    the task leaves some out."""
    folder = task.root or root or (task.problems and Path(task.problems).parent)
    listed = split_size(task.split, Path(folder), _path(task.pid_splits)) if folder else None
    if listed is not None:
        return listed
    return None if task.limit or task.missing_image == "skip" else samples


def _path(value: str | None) -> Path | None:
    return Path(value) if value else None


def scienceqa_metrics(
    task: Any, questions: Mapping[str, Question], predictions: Mapping[str, int | None], size: int | None
) -> dict[str, Any]:
    """The content of metrics.json; `size` is the number of questions in the whole split."""
    seed = task.seed if task.fallback == "random" else None
    scores = score(questions, predictions, split=task.split, split_size=size, fallback_seed=seed)
    return {
        "task": "scienceqa",
        "split": task.split,
        **scores.as_json(),
        "fallback": "none" if seed is None else f"random, seed {seed}",
        "by_topic": topic_accuracy(questions, predictions),
        "prompt_format": task.prompt_format,
        "versions": versions(),
    }


def prediction_row(task: Any, question: Question, output: str | None, prediction: int | None) -> dict[str, Any]:
    """One line of predictions.jsonl; `prediction` is what was scored, the guess of the fallback included."""
    guessed = prediction is None and task.fallback == "random"
    scored = random_choice(question, task.seed) if guessed else prediction
    return {
        "id": question.id,
        "question": question.question,
        "prompt": None,
        "choices": list(question.choices),
        "answer": question.answer,
        "output": output,
        "prediction": prediction,
        "likelihood_prediction": None,
        "correct": scored == question.answer,
        "guessed": guessed,
        "image": None,
        "subject": question.subject,
        "grade": question.grade,
        "topic": question.topic,
        "has_hint": question.has_hint,
        "has_image": question.has_image,
    }


def evaluate_instructions(
    answers: Answers, task: Any, samples: Sequence[Any], folder: Path, root: str | None
) -> Answered:
    """One sampled answer an instruction. `exact_match` (percent) is the share of answers that equal the reference up to
    whitespace: a score where answers are exact, as in the made-up world, and no measure of free texts."""
    outputs = answers.texts
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
        for sample, output in zip(samples, outputs, strict=True)
    ]
    exact = sum(row["exact"] for row in rows)
    metrics = {
        "task": "instruct",
        "split": task.split,
        "exact_match": round(100 * exact / len(rows), 2),
        "counts": {"answers": len(rows), "exact": exact, "empty": sum(not output for output in outputs)},
        "complete": task.limit is None,
        "generation": dict(vars(task.generation)),
        "seed": task.seed,
        "versions": versions(),
    }
    return metrics, rows
