"""ScienceQA in its untouched upstream layout: problems.json, pid_splits.json, captions.json, images/SPLIT/ID/."""

from __future__ import annotations

import logging
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmadapter.data.readers import Purpose
from mmadapter.data.readers.defects import Defects, UnusedFields
from mmadapter.data.readers.json_file import read_json
from mmadapter.data.readers.pictures import settle_missing_images
from mmadapter.data.samples import Sample
from mmadapter.data.settings import ScienceqaSettings
from mmadapter.data.templates import (
    PAPER,
    chosen_template,
    scienceqa_answer,
    scienceqa_answer_segments,
    scienceqa_format,
    scienceqa_segments,
)
from mmadapter.errors import InputError, described

log = logging.getLogger(__name__)
FOLDERS = ("", "data/scienceqa", "scienceqa", "data")
SPLITS = ("train", "val", "test")
WHOLE_SPLITS = {**{split: (split,) for split in SPLITS}, "trainval": ("train", "val")}
META = ("question", "choices", "answer", "subject", "grade", "hint", "split", "topic")
REQUIRED_TEXT = ("question",)
OPTIONAL_TEXT = ("hint", "subject", "grade", "split", "task", "topic", "category", "skill", "lecture", "solution")
LEFT_OUT = {
    "hint": "",
    "image": None,
    "subject": "",
    "grade": "",
    "split": "",
    "lecture": "",
    "solution": "",
    "topic": "",
}
"""What a field is that one's own questions leave out; `question`, `choices` and `answer` must be there."""
FIELDS = ("question", "choices", "answer", *LEFT_OUT)
PUBLISHED = ("task", "category", "skill")  # what the published questions have besides; nobody reads it
SUBJECTS = ("natural science", "social science", "language science")
CHOICES = range(2, 6)
BAD_QUESTION = "bad questions"
NO_QUESTION = "ids without a question in problems.json"


def read_scienceqa(settings: ScienceqaSettings, purpose: Purpose) -> list[Sample]:
    """The questions of one split, in the split's order.

    `root` is the folder that holds problems.json, that file, or a parent as upstream has it (data/scienceqa).
    `problems`, `pid_splits` and `captions` name other files. `limit` keeps the first ones. Without training, meta has
    `answers`: for each choice the segments of the answer that names it. Raises InputError naming file, id and field.
    """
    assert settings.root is not None
    root = Path(settings.root)
    file = find_file(root, settings.problems or settings.path, "problems.json")
    content = read_problems(file)
    ids = split_ids(root, file, content, settings.split, settings.pid_splits)[: settings.limit]
    caption_of = read_captions(root, settings.captions, content) if settings.captions is not None else {}
    folder = image_root(root, file) if settings.images else None
    tokenizer = purpose.tokenizer
    template = PAPER if settings.template == PAPER else chosen_template(settings.template, tokenizer)
    answers = [scienceqa_answer_segments(scienceqa_answer(one), template, tokenizer) for one in range(CHOICES[-1])]
    samples = []
    for pid, problem in checked_problems(file, content, ids, settings.prompt_format).items():
        caption = caption_of.get(pid)
        asked = problem, settings.prompt_format, caption, purpose.training, template, tokenizer
        samples.append(
            Sample(
                id=pid,
                source=purpose.source,
                segments=scienceqa_segments(*asked),
                image=image_path(folder, pid, problem) if folder else None,
                where=f"{file.name}, question {pid}",
                meta={
                    **{name: problem[name] for name in META},
                    "has_hint": bool(problem["hint"]),
                    "has_image": problem["image"] is not None,
                    **({} if purpose.training else {"answers": answers[: len(problem["choices"])]}),
                },
            )
        )
    return settle_missing_images(samples, settings.missing_image, f"{file}, split {settings.split}")


# Files.


def find_file(root: Path, named: str | Path | None, default: str) -> Path:
    """`named` (under the root, or as it is), else `default` under the root as upstream places it."""
    wanted = Path(named) if named is not None else Path(default)
    candidates = [root / folder / wanted for folder in FOLDERS] + ([wanted] if named is not None else [])
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    advice = "The root is the folder that holds problems.json, or its parent with data/scienceqa."
    if named is not None:
        advice = f"Check the path that was named in place of {default}."
    looked_at = ", ".join(map(str, dict.fromkeys(candidates)))
    raise InputError(f"{root}: there is no {wanted}. Looked at: {looked_at}. {advice}")


def read_problems(file: Path) -> dict[str, Any]:
    """The questions by id, as they stand in the file."""
    content = read_json(file)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}: expected an object from question id to question, got {described(content)}.")
    return content


def read_splits(file: Path) -> dict[str, list[str]]:
    """The lists of question ids by split name; raises InputError on a wrong type or an id twice in one list."""
    splits = read_json(file)
    if not isinstance(splits, dict):
        raise InputError(f"{file}: expected an object from split name to a list of ids, got {described(splits)}.")
    for name, ids in splits.items():
        if not isinstance(ids, list) or not all(isinstance(pid, str) for pid in ids):
            raise InputError(f"{file}, split {name}: expected a list of ids as strings.")
        if len(set(ids)) < len(ids):
            twice = next(pid for place, pid in enumerate(ids) if pid in set(ids[:place]))
            raise InputError(f"{file}, split {name}: the id {twice!r} stands there twice.")
    return splits


def split_ids(root: Path, file: Path, content: Mapping[str, Any], split: str, named: str | Path | None) -> list[str]:
    """The ids of `split` that `content` holds; ids that it lacks are reported in one line with their count.

    Without pid_splits.json the questions' own `split` decides.
    """
    try:
        splits_file = find_file(root, named, "pid_splits.json")
    except InputError:
        if named is not None or split not in WHOLE_SPLITS:
            raise
        wanted = WHOLE_SPLITS[split]
        ids = [pid for pid, problem in content.items() if isinstance(problem, dict) and problem.get("split") in wanted]
        if not ids:
            told = (
                f"no question has `split` {' or '.join(wanted)}, and there is no pid_splits.json. Give the questions a "
                "`split` (train, val, test), or let reader=own split them."
            )
            raise InputError(f"{file}: {told}") from None
        return ids
    splits = read_splits(splits_file)
    if split not in splits:
        raise InputError(f"{splits_file}: there is no split {split!r}; it has: {', '.join(splits)}.")
    defects = Defects(harmless=(NO_QUESTION,))
    for pid in splits[split]:
        if pid not in content:
            defects.add(NO_QUESTION, pid)
    present = [pid for pid in splits[split] if pid in content]
    if not present:
        raise InputError(
            f"{splits_file}: none of the {len(splits[split])} ids of split {split!r} is in {file}. "
            "Do the two files belong together?"
        )
    defects.settle(f"{splits_file}, split {split}", "")
    if others := sum(other_split(split, content[pid]) is not None for pid in present):
        line = "%s: %d of %d ids of split %s belong to another split by their own field."
        log.warning(line, splits_file, others, len(present), split)
    return present


def other_split(split: str, problem: Any) -> str | None:
    """The question's own `split` where it says another one than the list in which it stands."""
    wanted = WHOLE_SPLITS.get(split.replace("mini", ""))
    own = problem.get("split") if isinstance(problem, dict) else None
    return own if wanted is not None and own is not None and own not in wanted else None


def read_captions(root: Path, named: str | Path, known: Container[str]) -> dict[str, str]:
    """Machine-made picture captions by question id: upstream's captions.json, or a bare object from id to text."""
    file = find_file(root, named, "captions.json")
    found = read_json(file)
    captions = found.get("captions", found) if isinstance(found, dict) else found
    if not isinstance(captions, dict):
        raise InputError(
            f"{file}: expected an object with `captions` from question id to text, got {described(captions)}."
        )
    for pid, caption in captions.items():
        if not isinstance(caption, str):
            raise InputError(f"{file}, question {pid}: the caption is {described(caption)}; it must be text.")
    if unknown := sum(pid not in known for pid in captions):
        line = "%s: %d of %d caption ids name no question that is here; they are ignored."
        log.warning(line, file, unknown, len(captions))
    return captions


def image_root(root: Path, file: Path) -> Path:
    """The folder `images` beside problems.json, or under the root as upstream has it."""
    candidates = [file.parent / "images", *(root / folder / "images" for folder in FOLDERS)]
    return next((candidate for candidate in candidates if candidate.is_dir()), candidates[0])


def image_path(folder: Path, pid: str, problem: Mapping[str, Any]) -> Path | None:
    """images/SPLIT/ID/image.png by the problem's own split, None where it has no picture."""
    return folder / problem.get("split", "") / pid / problem["image"] if problem.get("image") else None


# What one question must look like.


def checked_problems(
    file: Path, content: Mapping[str, Any], ids: list[str], prompt_format: str
) -> dict[str, Mapping[str, Any]]:
    """The questions by id with their optional fields filled in. Raises InputError with file, ids and fields."""
    defects, unused = Defects(), UnusedFields()
    for pid in ids:
        unused.note(content[pid], f"question {pid}", FIELDS, PUBLISHED)
        for defect in [*problem_defects(content[pid], prompt_format), *_bad_place(pid, content[pid])]:
            defects.add(BAD_QUESTION, f"question {pid}: {defect}")
            break
    remedy = f"Fix them; `mmadapter check scienceqa --root {file.parent} --check` tells all that is wrong there."
    defects.settle(str(file), remedy)
    for notice in unused.notice(file):
        log.warning("%s", notice)
    return {pid: {**LEFT_OUT, **content[pid]} for pid in ids}


def _bad_place(pid: str, problem: Any) -> Iterator[str]:
    """An id that names another folder than images/SPLIT/ID/ where the picture of its question is looked for."""
    if isinstance(problem, dict) and problem.get("image") and (pid in ("", ".", "..") or "/" in pid or "\\" in pid):
        yield f"the id {pid[:80]!r} leads out of images/SPLIT/ID/, where its picture is looked for"


def problem_defects(problem: Any, prompt_format: str = "QCM-A") -> Iterator[str]:
    """All that is wrong with one question, each as "field: got, allowed".

    `lecture` and `solution` must be there only where `prompt_format` uses them.
    """
    if not isinstance(problem, dict):
        yield f"it is {described(problem)}, not an object with question, choices, answer, ..."
        return
    used = "".join(scienceqa_format(prompt_format))
    needed = [*REQUIRED_TEXT, *(["lecture"] if "L" in used else []), *(["solution"] if "E" in used else [])]
    for name in REQUIRED_TEXT + OPTIONAL_TEXT:
        if name not in problem:
            if name in needed:
                yield f"the field `{name}` is missing"
        elif not isinstance(problem[name], str):
            yield f"`{name}` is {described(problem[name])}; it must be text"
    if problem.get("image") is not None and not (isinstance(problem["image"], str) and problem["image"]):
        yield f"`image` is {described(problem['image'])}; it must be a file name or null"

    # Choices and answer.
    choices: Any = problem.get("choices")
    answer: Any = problem.get("answer")
    are_texts = isinstance(choices, list) and all(isinstance(choice, str) for choice in choices)
    if "choices" not in problem:
        yield "the field `choices` is missing"
    elif not are_texts:
        yield f"`choices` is {described(choices)}; it must be a list of texts"
    elif len(choices) not in CHOICES:
        yield f"`choices` has {len(choices)} entries; allowed are {CHOICES[0]} to {CHOICES[-1]}"
    if "answer" not in problem:
        yield "the field `answer` is missing"
    elif not isinstance(answer, int) or isinstance(answer, bool):
        yield f"`answer` is {described(answer)}; it must be a whole number, the index of a choice"
    elif are_texts and not 0 <= answer < len(choices):
        yield f"`answer` is {answer}; with {len(choices)} choices it must be 0 to {len(choices) - 1}"

    # What the texts may be.
    for name, pattern, allowed in (
        ("question", r"(?s).*\S.*", "a text that is not empty"),
        ("split", "|".join(SPLITS), ", ".join(SPLITS)),
        ("subject", "|".join(SUBJECTS), ", ".join(SUBJECTS)),
        ("grade", r"grade([1-9]|1[0-2])", "grade1 to grade12"),
        ("image", r"(?!\.\.?$)[^/\\]*", "a bare file name, found at images/SPLIT/ID/"),
    ):
        value = problem.get(name)
        if isinstance(value, str) and (value or name == "question") and not re.fullmatch(pattern, value):
            yield f"`{name}` is {value!r}; allowed: {allowed}"
