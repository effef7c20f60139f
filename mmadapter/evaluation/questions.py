"""What the scorer must know about a ScienceQA question, from the upstream files or from a sample's meta (no torch)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError

SUBJECTS = ("natural science", "social science", "language science")
GRADES = tuple(f"grade{number}" for number in range(1, 13))


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


def question_of(id: str, fields: Mapping[str, Any], where: str) -> Question:
    """Checks one question; `fields` is an upstream problem or the meta of a sample read from one."""
    try:
        choices, answer = tuple(fields["choices"]), fields["answer"]
        subject, grade = fields["subject"], fields["grade"]
        question = fields["question"]
        has_hint = fields["has_hint"] if "has_hint" in fields else bool(fields["hint"])
        has_image = fields["has_image"] if "has_image" in fields else bool(fields["image"])
    except KeyError as error:
        raise InputError(f"{where}, question {id}: the field {error} is missing.") from None
    if not isinstance(answer, int) or isinstance(answer, bool) or not 0 <= answer < len(choices):
        raise InputError(
            f"{where}, question {id}: answer is {answer!r}, allowed is an option's index from 0 to {len(choices) - 1}."
        )
    if subject not in SUBJECTS:
        raise InputError(f"{where}, question {id}: subject is {subject!r}, allowed: {', '.join(SUBJECTS)}.")
    if grade not in GRADES:
        raise InputError(f"{where}, question {id}: grade is {grade!r}, allowed: grade1 to grade12.")
    flags = (bool(has_hint), bool(has_image))
    return Question(str(id), question, choices, answer, subject, grade, *flags, fields.get("topic") or "")


def split_ids(pid_splits: Path, split: str) -> list[str]:
    """The ids of one split, as upstream's pid_splits.json lists them."""
    splits = read_json(pid_splits)
    if not isinstance(splits, dict) or split not in splits:
        known = ", ".join(splits) if isinstance(splits, dict) else "none"
        raise InputError(f"{pid_splits}: has no split {split!r}. Its splits: {known}. Set task.split to one of them.")
    return list(dict.fromkeys(str(id) for id in splits[split]))


def questions_of_samples(samples: Iterable[Any]) -> dict[str, Question]:
    """The questions behind samples (mmadapter.data), by id."""
    return {sample.id: question_of(sample.id, sample.meta, sample.where) for sample in samples}


def read_json(path: Path) -> Any:
    """Reads a JSON file; a missing or truncated file, or a key that comes twice, is an InputError with the place."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}.") from None

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise InputError(f"{path}: the key {key!r} comes twice; every id may come once. Remove one of them.")
            found[key] = value
        return found

    try:
        return json.loads(text, object_pairs_hook=without_duplicates)
    except json.JSONDecodeError as error:
        raise InputError(
            f"{path}: not valid JSON at character {error.pos} of {len(text)} (line {error.lineno}): {error.msg}. "
            "A file that stops in the middle was probably cut while downloading: fetch it again."
        ) from None


def read_questions(problems: Path, split: str, pid_splits: Path | None = None) -> tuple[dict[str, Question], int]:
    """The questions of one split that `problems` holds, and how many questions the whole split has.

    The split's list of ids is `pid_splits.json` (given, or beside the problems file); without it the split is what the
    problems' own `split` fields say, which knows train, val and test only.
    """
    content = read_json(problems)
    if not isinstance(content, dict) or not all(isinstance(fields, dict) for fields in content.values()):
        raise InputError(f"{problems}: not ScienceQA's problems.json, which is an object of id -> question.")
    if pid_splits is None and (problems.parent / "pid_splits.json").is_file():
        pid_splits = problems.parent / "pid_splits.json"
    if pid_splits is not None:
        ids = split_ids(pid_splits, split)
    else:
        ids = [id for id, fields in content.items() if fields.get("split") == split]
    questions = {id: question_of(id, content[id], problems.name) for id in ids if id in content}
    if not questions:
        found = sorted({str(fields.get("split")) for fields in content.values()})
        raise InputError(f"{problems}: no question of split {split!r} in it. Its splits: {', '.join(found) or 'none'}.")
    return questions, len(ids)
