"""Checks a ScienceQA folder in upstream's layout and writes its splits as JSON lines: mmadapter check scienceqa."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.checks import Check, Entry, path_below
from data_prep.command import options, run
from mmadapter.data.readers.defects import Defects, UnusedFields
from mmadapter.data.readers.scienceqa import (
    BAD_QUESTION,
    FIELDS,
    LEFT_OUT,
    NO_QUESTION,
    PUBLISHED,
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

OFFICIAL_SIZES = {"train": 12726, "val": 4241, "test": 4241}
OTHER_SPLIT = "split differs"


def main(arguments: list[str] | None = None) -> int:
    """The command line; see `run` for the exit codes."""
    about = "Checks ScienceQA as downloaded (problems.json, pid_splits.json, images/SPLIT/ID/image.png)."
    parser = options("scienceqa", about, "folder with problems.json, or its parent")
    parser.add_argument("--captions", type=Path, help="captions.json to be checked too (default: the root's)")
    return run(parser, arguments, read)


def read(settings: argparse.Namespace) -> Check:
    """The sound questions of all splits, and what is wrong with the others, the splits and the captions."""
    file = find_file(settings.root, None, "problems.json")
    problems, images = read_problems(file), image_root(settings.root, file)
    what = f"ScienceQA: {file} ({len(problems):,} questions), images under {images}"
    check = Check(what, images.parent, [file], Defects())
    unsound: set[str] = set()
    unused = UnusedFields()
    for pid, problem in problems.items():
        unused.note(problem, f"question {pid}", FIELDS, PUBLISHED)
        if defect := next(problem_defects(problem), None):
            check.defects.add(BAD_QUESTION, f"question {pid}: {defect}")
            unsound.add(pid)
    check.notes += unused.notice(file)

    # The splits, against the questions: a question in two splits is in one that its own field does not name.
    named: dict[str, list[str]] = {}
    try:
        splits_file = find_file(settings.root, None, "pid_splits.json")
    except InputError:
        for pid, problem in problems.items():
            if pid not in unsound:
                named.setdefault(problem.get("split") or "train", []).append(pid)
        check.notes.append("there is no pid_splits.json: the questions' own `split` decides")
    else:
        check.files.append(splits_file)
        named = read_splits(splits_file)
    told: set[str] = set()
    for name, ids in named.items():
        check.splits[name] = []
        for pid in ids:
            if pid not in problems and pid not in told:
                check.defects.add(NO_QUESTION, f"{pid} ({name})")
                told.add(pid)
            if pid not in problems or pid in unsound:
                continue
            problem = {**LEFT_OUT, **problems[pid]}
            if (own := other_split(name, problem)) is None:
                image = image_path(images, pid, problem)
                said = None if image else (problem["question"], problem["hint"], *problem["choices"])
                line = _line(pid, problem, path_below(image, check.root) if image else None)
                check.splits[name].append(Entry(f"question {pid}", line, image, said=said))
            elif pid not in told:
                check.defects.add(OTHER_SPLIT, f"question {pid} is in {name}, its own `split` is {own!r}")
                told.add(pid)
    listed = {pid for ids in named.values() for pid in ids}
    if unnamed := len(problems.keys() - listed - unsound):
        check.notes.append(f"{unnamed:,} questions are named by no split and are ignored")
    if any(len(named[name]) != size for name, size in OFFICIAL_SIZES.items() if name in named):
        sizes = ", ".join(f"{name} {size:,}" for name, size in OFFICIAL_SIZES.items())
        check.notes.append(f"not the official ScienceQA, whose sizes are: {sizes}")

    # Captions by question id, where there are some.
    try:
        captions = find_file(settings.root, settings.captions, "captions.json")
    except InputError:
        if settings.captions is not None:
            raise
        return check
    check.files.append(captions)
    known = listed | problems.keys()
    for pid in read_captions(captions.parent, captions, known):
        if pid not in known:
            check.defects.add(f"unknown caption ids in {captions.name}", pid)
    return check


def _line(pid: str, problem: Mapping[str, Any], image: str | None) -> dict[str, Any]:
    return {
        "id": pid,
        "question": problem["question"],
        "context": scienceqa_context(problem, None),
        "options": scienceqa_options(problem["choices"]),
        "choices": problem["choices"],
        "lecture": problem.get("lecture", ""),
        "solution": problem.get("solution", ""),
        "answer": problem["answer"],
        "target": f"The answer is {LETTERS[problem['answer']]}.",
        "image": image,
        "subject": problem["subject"],
        "grade": problem["grade"],
        "topic": problem.get("topic", ""),
        "has_hint": bool(problem["hint"]),
        "has_image": problem["image"] is not None,
    }


if __name__ == "__main__":
    sys.exit(main())
