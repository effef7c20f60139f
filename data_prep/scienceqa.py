"""Checks a ScienceQA folder in upstream's layout and writes its splits as JSON lines: python -m data_prep.scienceqa."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.checks import ABSENT, Check, Entry, Split, path_below
from data_prep.command import options, run
from mmadapter.data.readers.defects import EXAMPLES
from mmadapter.data.readers.scienceqa import (
    BAD_QUESTION,
    NO_QUESTION,
    SPLITS,
    find_file,
    image_path,
    image_root,
    other_split,
    problem_defects,
    read_captions,
    read_problems,
    read_splits,
)
from mmadapter.data.templates import LETTERS, scienceqa_context, scienceqa_options
from mmadapter.errors import InputError

OFFICIAL_SIZES = {
    "train": 12726,
    "val": 4241,
    "test": 4241,
    "trainval": 16967,
    "minitrain": 1272,
    "minival": 424,
    "minitest": 424,
}


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where the data is sound (or every loss was asked for), 1 where it is not, 2 where it cannot be read."""
    about = "Checks ScienceQA as downloaded (problems.json, pid_splits.json, images/SPLIT/ID/image.png)."
    parser = options("scienceqa", about, "folder with problems.json, or its parent")
    parser.add_argument(
        "--missing-image",
        choices=("error", "skip", "no_image"),
        default="error",
        help="picture named but absent: stop, leave the item out, or keep it without a picture",
    )
    parser.add_argument("--captions", type=Path, help="captions.json to be checked too (default: the root's)")
    return run(parser, arguments, examine, _line)


def examine(settings: argparse.Namespace) -> Check:
    """Reads a folder and finds all that is wrong with it."""
    root: Path = settings.root
    file = find_file(root, None, "problems.json")
    problems, images = read_problems(file), image_root(root, file)
    what = f"ScienceQA: {file} ({len(problems):,} questions), images under {images}"
    check = Check(what, images.parent, [file])
    for pid, problem in problems.items():
        if defect := next(problem_defects(problem), None):
            check.add(BAD_QUESTION, pid, f"question {pid}: {defect}")

    # The splits, against the questions and against each other.
    try:
        splits_file = find_file(root, None, "pid_splits.json")
    except InputError:
        named: dict[str, list[str]] = {}
        for pid, problem in problems.items():
            if isinstance(problem, dict) and isinstance(problem.get("split"), str):
                named.setdefault(problem["split"], []).append(pid)
        check.notes.append("there is no pid_splits.json: the questions' own `split` decides")
    else:
        check.files.append(splits_file)
        named = read_splits(splits_file)
    unsound = check.bad.get(BAD_QUESTION, {})
    for name, ids in named.items():
        check.splits[name] = Split([])
        for pid in ids[: settings.limit]:
            problem = problems.get(pid)
            image = None if problem is None or pid in unsound else image_path(images, pid, problem)
            check.splits[name].entries.append(Entry(pid, f"question {pid}", problem, image))
            if problem is None:
                check.add(NO_QUESTION, pid, f"{pid} ({name})")
            elif (own := other_split(name, problem)) is not None:
                check.add("split differs", pid, f"question {pid} is in {name}, its own `split` is {own!r}")
    check.find_in_two_splits(SPLITS, lambda one: (one.key,))
    known = {one.key for split in check.splits.values() for one in split.entries}
    if unnamed := sum(pid not in known for pid in problems):
        check.notes.append(f"{unnamed:,} questions are named by no split and are ignored")
    sizes = {name: len(ids) for name, ids in named.items()}
    if others := [f"{name} {size:,}" for name, size in OFFICIAL_SIZES.items() if sizes.get(name, size) != size]:
        check.notes.append(f"not the official ScienceQA, whose sizes are: {', '.join(others)}")

    _check_captions(check, settings, {*known, *problems})
    check.find_bad_pictures(settings.check, settings.workers)
    if repeated := check.repeated_in_train("test", _text):
        check.notes.append(f"{repeated:,} test questions without an image are word for word train questions")
    check.settle(settings.on_bad == "skip", settings.missing_image)
    return check


def _check_captions(check: Check, settings: argparse.Namespace, known: set[Any]) -> None:
    try:
        file = find_file(settings.root, settings.captions, "captions.json")
    except InputError:
        if settings.captions is not None:
            raise
        return
    check.files.append(file)
    if unknown := [pid for pid in read_captions(file.parent, file, known) if pid not in known]:
        line = f"unknown caption ids: {len(unknown):,} in {file.name}, the first: {', '.join(unknown[:EXAMPLES])}"
        (check.notes if settings.on_bad == "skip" else check.failures).append(line)


def _text(entry: Entry) -> str | None:
    """All that a question without an image says."""
    problem = entry.item
    if not isinstance(problem, dict) or problem.get("image") is not None:
        return None
    return repr((problem.get("question"), problem.get("hint"), problem.get("choices")))


def _line(check: Check, entry: Entry) -> dict[str, Any]:
    problem: Mapping[str, Any] = entry.item
    has_picture = entry.image is not None and entry.key not in check.bad.get(ABSENT, {})
    return {
        "id": entry.key,
        "question": problem["question"],
        "context": scienceqa_context(problem, None),
        "options": scienceqa_options(problem["choices"]),
        "choices": problem["choices"],
        "lecture": problem.get("lecture", ""),
        "solution": problem.get("solution", ""),
        "answer": problem["answer"],
        "target": f"The answer is {LETTERS[problem['answer']]}.",
        "image": path_below(entry.image, check.root) if has_picture and entry.image else None,
        "subject": problem["subject"],
        "grade": problem["grade"],
        "topic": problem.get("topic", ""),
        "has_hint": bool(problem["hint"]),
        "has_image": problem["image"] is not None,
    }


if __name__ == "__main__":
    sys.exit(main())
