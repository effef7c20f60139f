"""ScienceQA's questions, one parser of answers, accuracy by nine columns (Lu et al. 2022, table 3). No torch."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.data.readers.scienceqa import checked_problems, find_file, read_problems, read_splits, split_ids
from mmadapter.data.samples import Sample
from mmadapter.errors import InputError


@dataclass(frozen=True)
class Question:
    """One multiple-choice question: its options, the right one, and the flags that decide its score columns."""

    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    subject: str
    grade: str
    has_hint: bool
    has_image: bool
    topic: str = ""


def question_of_problem(id: str, problem: Mapping[str, Any]) -> Question:
    """From a checked upstream problem; it has a hint where that is not empty, an image where that is not null."""
    return Question(
        id,
        choices=tuple(problem["choices"]),
        topic=problem.get("topic", ""),
        has_hint=bool(problem["hint"]),
        has_image=problem["image"] is not None,
        **{name: problem[name] for name in ("question", "answer", "subject", "grade")},
    )


def questions_of_samples(samples: Iterable[Sample]) -> dict[str, Question]:
    """The questions behind samples that the ScienceQA reader made, by id."""
    found = {}
    for sample in samples:
        meta = sample.meta
        known = {name: meta[name] for name in ("question", "answer", "subject", "grade", "has_hint", "has_image")}
        found[sample.id] = Question(sample.id, choices=tuple(meta["choices"]), topic=meta.get("topic", ""), **known)
    return found


def read_questions(
    split: str, *, root: Path | None = None, problems: Path | None = None, pid_splits: Path | None = None
) -> tuple[dict[str, Question], int]:
    """The questions of one split that the problems file holds, and how many questions the whole split has.

    The split's list of ids is pid_splits.json (named, or found beside the problems or under the root); without it the
    problems' own `split` fields decide.
    """
    if root is None and problems is None:
        raise InputError("task=scienceqa needs the questions: set task.problems=FILE or task.root=FOLDER.")
    root = Path(problems).parent if root is None else Path(root)  # type: ignore[arg-type]
    file = find_file(root, problems, "problems.json")
    content = read_problems(file)
    ids = split_ids(root, file, content, split, pid_splits)
    checked = checked_problems(file, content, ids, "QCM-A")
    questions = {id: question_of_problem(id, problem) for id, problem in checked.items()}
    return questions, split_size(split, root, pid_splits) or len(ids)


def split_size(split: str, root: Path, pid_splits: Path | None = None) -> int | None:
    """How many questions the splits list for a split; None where there is no such file or list.

    With another file named, the longer list counts, so that a file of fewer questions is known as a subset.
    """
    sizes = []
    for named in dict.fromkeys((pid_splits, None)):
        with suppress(InputError):
            splits = read_splits(find_file(root, named, "pid_splits.json"))
            sizes += [len(splits[split])] if split in splits else []
    return max(sizes, default=None)


COLUMNS: dict[str, Callable[[Question], bool]] = {
    "NAT": lambda question: question.subject == "natural science",
    "SOC": lambda question: question.subject == "social science",
    "LAN": lambda question: question.subject == "language science",
    "TXT": lambda question: question.has_hint,
    "IMG": lambda question: question.has_image,
    "NO": lambda question: not question.has_hint and not question.has_image,
    "G1-6": lambda question: 1 <= int(question.grade.removeprefix("grade")) <= 6,
    "G7-12": lambda question: 7 <= int(question.grade.removeprefix("grade")) <= 12,
    "Avg": lambda question: True,
}

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


def random_choice(question: Question, seed: int) -> int:
    """The guess of `fallback=random`: drawn from Python's generator seeded with the text "SEED:ID", so that it
    depends on the question and the seed only, not on which other questions are scored, or in what order."""
    return random.Random(f"{seed}:{question.id}").randrange(len(question.choices))


@dataclass(frozen=True)
class Scores:
    """Accuracy in percent, two decimals, by column (None where no question falls in it), with the counts behind it."""

    accuracy: dict[str, float | None]
    counts: dict[str, int]
    correct: dict[str, int]
    unanswered: int
    split: str
    split_size: int | None  # None: not known
    guessed: int = 0

    @property
    def scored(self) -> int:
        return self.counts["Avg"]

    @property
    def complete(self) -> bool:
        """Whether every question of the split was scored: only then may this be called the split's score."""
        return self.scored == self.split_size

    @property
    def label(self) -> str:
        """What the numbers are: "test split, all 4241 questions" or "subset: 52 of the 4241 questions of test"."""
        if self.complete:
            return f"{self.split} split, all {self.split_size} questions"
        of = f"of the {self.split_size} questions of" if self.split_size else "questions of"
        return f"subset: {self.scored} {of} {self.split}, not the {self.split} score"

    def as_json(self) -> dict[str, Any]:
        return {
            "accuracy": self.accuracy,
            "counts": self.counts,
            "correct": self.correct,
            "unanswered": self.unanswered,
            "guessed": self.guessed,
            "coverage": {"scored": self.scored, "split": self.split_size, "complete": self.complete},
            "label": self.label,
        }


def score(
    questions: Mapping[str, Question],
    predictions: Mapping[str, int | None],
    *,
    split: str = "test",
    split_size: int | None = None,
    fallback_seed: int | None = None,
) -> Scores:
    """Scores the questions that `predictions` has an entry for; None is unanswered: counted, and wrong.

    A question with hint and image counts in TXT and in IMG, as in the official script. `split_size` is the number of
    questions in the whole split, None where it is not known. With `fallback_seed`, unanswered questions get a
    `random_choice` instead: only for comparison with old tables.
    """
    counts, correct = dict.fromkeys(COLUMNS, 0), dict.fromkeys(COLUMNS, 0)
    unanswered = 0
    for id, prediction in predictions.items():
        question = questions[id]
        if prediction is None:
            unanswered += 1
            if fallback_seed is not None:
                prediction = random_choice(question, fallback_seed)
        for column, belongs in COLUMNS.items():
            if belongs(question):
                counts[column] += 1
                correct[column] += prediction == question.answer
    accuracy = {name: round(100 * correct[name] / counts[name], 2) if counts[name] else None for name in COLUMNS}
    guessed = unanswered if fallback_seed is not None else 0
    return Scores(accuracy, counts, correct, unanswered, split, split_size, guessed)


def topic_accuracy(
    questions: Mapping[str, Question], predictions: Mapping[str, int | None]
) -> dict[str, dict[str, float | int]]:
    """Accuracy in percent and count by upstream's `topic` field, for the questions that have one."""
    marks: dict[str, list[bool]] = {}
    for id, prediction in predictions.items():
        if questions[id].topic:
            marks.setdefault(questions[id].topic, []).append(prediction == questions[id].answer)
    return {
        topic: {"accuracy": round(100 * sum(right) / len(right), 2), "count": len(right)}
        for topic, right in sorted(marks.items())
    }
