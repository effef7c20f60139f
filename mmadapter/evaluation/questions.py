"""What the scorer must know about a ScienceQA question, from the upstream files or from a sample's meta (no torch)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.data.readers.scienceqa import checked_problems, find_file, read_problems, read_splits, split_ids
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
    """From a checked upstream problem; a hint is there when it is not empty, an image when it is not null."""
    flags = (bool(problem["hint"]), problem["image"] is not None)
    topic = problem.get("topic", "")
    choices = tuple(problem["choices"])
    return Question(
        id, problem["question"], choices, problem["answer"], problem["subject"], problem["grade"], *flags, topic
    )


def questions_of_samples(samples: Iterable[Any]) -> dict[str, Question]:
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
