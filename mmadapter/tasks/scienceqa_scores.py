"""ScienceQA's answers: one parser, files of predictions, accuracy by nine columns (Lu et al. 2022, table 3). No torch.

A question is what the ScienceQA reader puts into `Sample.meta`: question, choices, answer, subject, grade, topic,
has_hint, has_image.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmadapter.data.readers.json_file import read_json, read_json_lines
from mmadapter.errors import InputError, described

Question = Mapping[str, Any]
Questions = Mapping[str, Question]
"""By id."""

COLUMNS: dict[str, Callable[[Question], bool]] = {
    "NAT": lambda question: question["subject"] == "natural science",
    "SOC": lambda question: question["subject"] == "social science",
    "LAN": lambda question: question["subject"] == "language science",
    "TXT": lambda question: question["has_hint"],
    "IMG": lambda question: question["has_image"],
    "NO": lambda question: not question["has_hint"] and not question["has_image"],
    "G1-6": lambda question: 1 <= int(question["grade"].removeprefix("grade") or 0) <= 6,
    "G7-12": lambda question: 7 <= int(question["grade"].removeprefix("grade") or 0) <= 12,
    "Avg": lambda question: True,
}

OFFICIAL_TEST_IDS = "d8c0f869a41f4547"  # of the 4,241 questions of the published test split


def is_official_test(questions: Questions) -> bool:
    """Whether these are the questions of the published test split, by their ids: then the papers' scores compare."""
    ids = "\n".join(sorted(questions))
    return hashlib.sha256(ids.encode()).hexdigest()[:16] == OFFICIAL_TEST_IDS


_BRACKETS = r"\(\s*([A-Za-z])\s*\)"
_UPPER = r"([A-Z])(?![\w'’])"
_STATEMENT = re.compile(
    rf"\b(?i:answer\s*(?:is\s*:?|:)\s*(?:option\s+)?)(?:{_BRACKETS}|{_UPPER}|([a-z])(?=\s*(?:[.,;:)\n]|$)))"
)
_BEGINNING = re.compile(rf"(?i:option\s+)?(?:{_BRACKETS}|([A-Za-z])\s*(?=[.,:)\n]|$)|([A-Z])(?=\s*(?:and|or|/|&)\s))")
_BRACKETED = re.compile(_BRACKETS)
_SECOND = re.compile(rf"\s*\)?\s*(?:,|/|&|,?\s*\b(?:or|and)\b)\s*(?i:option\s+)?(?:{_BRACKETS}|{_UPPER})")
_PREFIX = re.compile(r"^\s*(?:the\s+)?(?:correct\s+)?answer\s*(?:is\s*:?|:)\s*", re.IGNORECASE)


def parse_answer(text: str, choices: Sequence[str]) -> int | None:
    """The index of the option that an output names, or None where it names none, or several at once.

    Tried in this order; a letter counts only when an option of that letter exists:

    1. an option's own text, when the output (without "The answer is" and a final full stop) is exactly it and is not
       a single letter;
    2. a statement: "The answer is B.", "the answer is (C)", "Answer: b." (of several, the last one);
    3. the output's beginning: "B", "(B)", "b.", "B. text", "B) text";
    4. a letter in brackets anywhere: "I think (D)" (of several, the last one).

    Two options named in one breath ("A or B", "(A) and (C)") are no answer. The official script takes form 2 without
    brackets, only when it comes once, and guesses otherwise; this one never guesses.
    """
    text = text.replace("*", "").strip()
    by_text = _option_with_text(text, choices)
    if by_text is not None or not text:
        return by_text
    beginning = _BEGINNING.match(text)
    for matches in (list(_STATEMENT.finditer(text)), [beginning] if beginning else [], list(_BRACKETED.finditer(text))):
        named = [(match, index) for match in matches if (index := _index_of(match, choices)) is not None]
        if named:
            several = any(_names_another(text[match.end() :], index, choices) for match, index in named[-2:])
            return None if several else named[-1][1]
    return None


def _option_with_text(text: str, choices: Sequence[str]) -> int | None:
    """The only option whose text is the whole output; blanks, case and a final full stop do not matter."""

    def bare(words: str) -> str:
        return " ".join(words.split()).rstrip(".").casefold()

    said = bare(_PREFIX.sub("", text))
    found = [index for index, choice in enumerate(choices) if len(said) > 1 and said == bare(choice)]
    return found[0] if len(found) == 1 else None


def _index_of(match: re.Match[str], choices: Sequence[str]) -> int | None:
    letter = next(group for group in match.groups() if group)
    index = ord(letter.upper()) - ord("A")
    return index if index < len(choices) else None


def _names_another(rest: str, index: int, choices: Sequence[str]) -> bool:
    """Whether the text right after a named option goes on with a second, different one ("or B")."""
    match = _SECOND.match(rest)
    second = _index_of(match, choices) if match else None
    return second is not None and second != index


LAYOUTS = """recognised layouts:
  1. JSON {"results": {id: option index}, "outputs": {id: text}, ...}: ScienceQA's and LLaVA's result files
     (either map may be missing)
  2. JSON {"correct": [...], "incorrect": [...]} with question_id and pred in each item: LLaVA's scored outputs
  3. JSON lines {"question_id": id, "text": ...}: LLaVA's answers
  4. JSON lines {"id": id, "prediction": index or null, "output": text}: mmadapter's predictions.jsonl"""


def read_predictions(
    path: Path, questions: Questions, predictions_from: str = "results"
) -> tuple[dict[str, int | None], dict[str, str], list[str]]:
    """Option index by question id (None: unanswered), the texts they came from, and remarks; a file in any of LAYOUTS.

    Indices in the file are scored as they stand; `predictions_from="outputs"` parses the texts instead. An id that is
    not among `questions`, an id that comes twice, or an index out of range is an InputError with file and id; -1 and
    null mean unanswered.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; predictions= takes a file; {LAYOUTS}")
    content = read_json_lines(path) if path.suffix == ".jsonl" else read_json(path)
    indices: dict[str, Any] = {}
    outputs: dict[str, Any] = {}
    remarks = []
    if isinstance(content, dict) and isinstance(content.get("correct"), list):
        wrong = content.get("incorrect") or []
        if not isinstance(wrong, list):
            raise InputError(f"{path}: `incorrect` is {described(wrong)}; it must be a list of items; {LAYOUTS}")
        marked = [*content["correct"], *wrong]
        content = [{"pred": None, **item} if isinstance(item, dict) else item for item in marked]
    if isinstance(content, list):
        for number, item in enumerate(content, start=1):
            match item:
                case {"question_id": id, "pred": text} | {"question_id": id, "text": text}:
                    pass
                case {"id": id, "prediction": index}:
                    indices[str(id)], text = index, item.get("output")
                case _:
                    raise InputError(f"{path}, item {number}: the layout of {described(item)} is not known; {LAYOUTS}")
            if str(id) in outputs:
                raise InputError(f"{path}, item {number}: the id {str(id)!r} comes twice; every id may come once.")
            outputs[str(id)] = text or ""
    else:
        maps = [content.get(name) or {} for name in ("results", "outputs")] if isinstance(content, dict) else []
        if not maps or not content.keys() & {"results", "outputs"} or not all(isinstance(one, dict) for one in maps):
            raise InputError(f"{path}: the layout of {described(content)} is not known; {LAYOUTS}")
        indices, outputs = maps
        if "acc" in content:
            remarks.append(f"the file's own acc field says {content['acc']}; it is not used")

    # What is scored: indices, or texts.
    is_parsed = predictions_from == "outputs"
    if outputs and not indices and not is_parsed:
        is_parsed = True
        remarks.append("the file holds texts and no indices: the texts were parsed")
    chosen = outputs if is_parsed else indices
    if not chosen:
        raise InputError(
            f"{path}: holds no {predictions_from}, but task.predictions_from={predictions_from}; {LAYOUTS}"
        )
    if unknown := [id for id in chosen if id not in questions]:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        raise InputError(
            f"{path}: {len(unknown)} of its ids are not among the {len(questions)} questions of this split that the "
            f"problems file holds: {shown}. Check task.split and task.problems, or remove them."
        )
    for id, text in outputs.items():
        if not isinstance(text, str):
            raise InputError(f"{path}, id {id}: the output is {described(text)}, allowed: a text.")
    if is_parsed:
        return {id: parse_answer(text, questions[id]["choices"]) for id, text in outputs.items()}, outputs, remarks
    for id, index in indices.items():
        most = len(questions[id]["choices"]) - 1
        if index is not None and (not isinstance(index, int) or isinstance(index, bool) or not -1 <= index <= most):
            raise InputError(
                f"{path}, id {id}: the prediction is {index!r}, allowed: an option's index from 0 to {most}, or -1 or "
                "null for unanswered."
            )
    return {id: None if index == -1 else index for id, index in indices.items()}, outputs, remarks


def random_choice(id: str, question: Question, seed: int) -> int:
    """The guess of `fallback=random`: drawn from Python's generator seeded with the text "SEED:ID", so that it
    depends on the question and the seed only, not on which other questions are scored, or in what order."""
    return random.Random(f"{seed}:{id}").randrange(len(question["choices"]))


def score(
    questions: Questions,
    predictions: Mapping[str, int | None],
    *,
    split: str = "test",
    split_size: int | None = None,
    fallback_seed: int | None = None,
) -> dict[str, Any]:
    """Accuracy in percent, two decimals, by column (None where no question falls in it), with the counts behind it and
    what they cover, as metrics.json has them.

    Scores the questions that `predictions` has an entry for; None is unanswered: counted, and wrong. A question with
    hint and image counts in TXT and in IMG, as in the official script. `split_size` is the number of questions in the
    whole split, None where it is not known: only when all of them are scored are the numbers called the split's.
    With `fallback_seed`, unanswered questions get a `random_choice` instead: only for comparison with old tables.
    """
    counts, correct = dict.fromkeys(COLUMNS, 0), dict.fromkeys(COLUMNS, 0)
    for id, prediction in predictions.items():
        question = questions[id]
        if prediction is None and fallback_seed is not None:
            prediction = random_choice(id, question, fallback_seed)
        for column, belongs in COLUMNS.items():
            if belongs(question):
                counts[column] += 1
                correct[column] += prediction == question["answer"]
    unanswered, scored = list(predictions.values()).count(None), len(predictions)
    is_complete = scored == split_size
    of = f"of the {split_size} questions of" if split_size else "questions of"
    subset = f"subset: {scored} {of} {split}, not the {split} score"
    return {
        "accuracy": {name: round(100 * correct[name] / counts[name], 2) if counts[name] else None for name in COLUMNS},
        "counts": counts,
        "correct": correct,
        "unanswered": unanswered,
        "guessed": 0 if fallback_seed is None else unanswered,
        "coverage": {"scored": scored, "split": split_size, "complete": is_complete},
        "label": f"{split} split, all {split_size} questions" if is_complete else subset,
    }


def topic_accuracy(questions: Questions, predictions: Mapping[str, int | None]) -> dict[str, dict[str, float | int]]:
    """Accuracy in percent and count by upstream's `topic` field, for the questions that have one."""
    marks: dict[str, list[bool]] = {}
    for id, prediction in predictions.items():
        if topic := questions[id]["topic"]:
            marks.setdefault(topic, []).append(prediction == questions[id]["answer"])
    return {
        topic: {"accuracy": round(100 * sum(right) / len(right), 2), "count": len(right)}
        for topic, right in sorted(marks.items())
    }
