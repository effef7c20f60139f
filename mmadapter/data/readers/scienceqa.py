"""ScienceQA in its untouched upstream layout: problems.json, pid_splits.json, captions.json, images/SPLIT/ID/."""

from __future__ import annotations

import logging
from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from mmadapter.data.readers.images_on_disk import check_missing_image, settle_missing_images
from mmadapter.data.readers.json_file import read_json
from mmadapter.data.readers.scienceqa_checks import problem_defects
from mmadapter.data.samples import Sample
from mmadapter.data.templates import scienceqa_format, scienceqa_segments
from mmadapter.errors import InputError

log = logging.getLogger(__name__)
FOLDERS = ("", "data/scienceqa", "scienceqa", "data")
WHOLE_SPLITS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}
META = ("question", "choices", "answer", "subject", "grade", "hint", "split")


def read_scienceqa(
    root: Path,
    split: str,
    *,
    prompt_format: str = "QCM-A",
    captions: Path | None = None,
    with_images: bool,
    training: bool,
    missing_image: str = "error",
    source: str = "scienceqa",
    limit: int | None = None,
    problems: Path | None = None,
    pid_splits: Path | None = None,
) -> list[Sample]:
    """The questions of one split, in the split's order; each is checked as it is read.

    `root` is the folder that holds problems.json, that file, or a parent as upstream has it (data/scienceqa).
    `problems`, `pid_splits` and `captions` name other files. `limit` keeps the first ones. Raises InputError naming
    file, id and field.
    """
    check_missing_image(missing_image)
    scienceqa_format(prompt_format)
    root = Path(root)
    if root.is_file():
        root, problems = root.parent, root
    file = find_file(root, problems, "problems.json")
    content = read_problems(file)
    ids = split_ids(root, file, content, split, pid_splits)[:limit]
    caption_of = read_captions(root, captions, content) if captions is not None else {}
    folder = image_root(root, file) if with_images else None
    samples = []
    for pid in ids:
        problem = checked_problem(file, pid, content[pid], prompt_format)
        samples.append(
            Sample(
                id=pid,
                source=source,
                segments=scienceqa_segments(problem, prompt_format, caption_of.get(pid), training),
                image=image_path(folder, pid, problem) if folder else None,
                where=f"{file.name}, question {pid}",
                meta=_meta(problem),
            )
        )
    return settle_missing_images(samples, missing_image, f"{file}, split {split}")


def find_file(root: Path, named: Path | None, default: str) -> Path:
    """`named` (under the root, or as it is), else `default` under the root as upstream places it."""
    wanted = Path(named) if named is not None else Path(default)
    candidates = [root / folder / wanted for folder in FOLDERS] + ([wanted] if named is not None else [])
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise InputError(
        f"{root}: there is no {wanted}. Looked at: {', '.join(map(str, dict.fromkeys(candidates)))}. "
        "data.root is the folder that holds problems.json, or its parent with data/scienceqa."
    )


def read_problems(file: Path) -> dict[str, Any]:
    """The questions by id, as they stand in the file."""
    content = read_json(file)
    if not isinstance(content, dict) or not content:
        raise InputError(f"{file}: expected an object from question id to question, got {_kind(content)}.")
    return content


def read_splits(file: Path) -> dict[str, list[str]]:
    """The lists of question ids by split name; raises InputError on a wrong type or an id twice in one list."""
    splits = read_json(file)
    if not isinstance(splits, dict):
        raise InputError(f"{file}: expected an object from split name to a list of ids, got {_kind(splits)}.")
    for name, ids in splits.items():
        if not isinstance(ids, list) or not all(isinstance(pid, str) for pid in ids):
            raise InputError(f"{file}, split {name}: expected a list of ids as strings.")
        if len(set(ids)) < len(ids):
            twice = next(pid for place, pid in enumerate(ids) if pid in set(ids[:place]))
            raise InputError(f"{file}, split {name}: the id {twice!r} stands there twice.")
    return splits


def split_ids(root: Path, file: Path, content: Mapping[str, Any], split: str, named: Path | None) -> list[str]:
    """The ids of `split` that `content` holds; ids that it lacks are reported in one line with their count."""
    try:
        splits_file = find_file(root, named, "pid_splits.json")
    except InputError:
        if named is not None or split not in WHOLE_SPLITS:
            raise
        return _ids_by_field(file, content, split)
    splits = read_splits(splits_file)
    if split not in splits:
        raise InputError(f"{splits_file}: there is no split {split!r}; it has: {', '.join(splits)}.")
    present = [pid for pid in splits[split] if pid in content]
    if not present:
        raise InputError(
            f"{splits_file}: none of the {len(splits[split])} ids of split {split!r} is in {file}. "
            "Do the two files belong together?"
        )
    if len(present) < len(splits[split]):
        missing = len(splits[split]) - len(present)
        line = "%s names %d ids of split %s that %s lacks; going on with the %d others."
        log.warning(line, splits_file, missing, split, file, len(present))
    _report_other_splits(splits_file, content, split, present)
    return present


def read_captions(root: Path, named: Path, content: Container[str]) -> dict[str, str]:
    """Machine-made picture captions by question id: upstream's captions.json, or a bare object from id to text."""
    file = find_file(root, named, "captions.json")
    found = read_json(file)
    captions = found.get("captions", found) if isinstance(found, dict) else found
    if not isinstance(captions, dict):
        raise InputError(f"{file}: expected an object with `captions` from question id to text, got {_kind(captions)}.")
    for pid, caption in captions.items():
        if not isinstance(caption, str):
            raise InputError(f"{file}, question {pid}: the caption is {_kind(caption)}; it must be text.")
    if unknown := sum(pid not in content for pid in captions):
        line = "%s: %d of %d caption ids name no question that is here; they are ignored."
        log.warning(line, file, unknown, len(captions))
    return captions


def checked_problem(file: Path, pid: str, problem: Any, prompt_format: str) -> Mapping[str, Any]:
    """The problem with its optional fields filled in; raises InputError with file, id and field on the first defect."""
    if defects := problem_defects(problem, prompt_format):
        more = f" ({len(defects) - 1} more in this question)" if len(defects) > 1 else ""
        raise InputError(
            f"{file}, question {pid}: {defects[0]}{more}. Mend it; `python -m data_prep.scienceqa --root {file.parent} "
            "--check` lists all such questions."
        )
    return {"lecture": "", "solution": "", "topic": "", **problem}


def image_root(root: Path, file: Path) -> Path:
    """The folder `images` beside problems.json, or under the root as upstream has it."""
    candidates = [file.parent / "images", *(root / folder / "images" for folder in FOLDERS)]
    return next((candidate for candidate in candidates if candidate.is_dir()), candidates[0])


def image_path(folder: Path, pid: str, problem: Mapping[str, Any]) -> Path | None:
    """images/SPLIT/ID/image.png by the problem's own split, None where it has no picture."""
    return folder / problem["split"] / pid / problem["image"] if problem["image"] else None


def _meta(problem: Mapping[str, Any]) -> dict[str, Any]:
    meta = {name: problem[name] for name in META}
    meta["topic"] = problem["topic"]
    meta["has_hint"] = bool(problem["hint"])
    meta["has_image"] = problem["image"] is not None
    return meta


def _ids_by_field(file: Path, content: Mapping[str, Any], split: str) -> list[str]:
    """Without pid_splits.json the questions' own `split` decides."""
    wanted = WHOLE_SPLITS[split]
    ids = [pid for pid, problem in content.items() if isinstance(problem, dict) and problem.get("split") in wanted]
    if not ids:
        raise InputError(f"{file}: no question has `split` {' or '.join(wanted)}, and there is no pid_splits.json.")
    return ids


def _report_other_splits(splits_file: Path, content: Mapping[str, Any], split: str, ids: list[str]) -> None:
    wanted = WHOLE_SPLITS.get(split.replace("mini", ""))
    if wanted is None:
        return
    others = sum(isinstance(content[pid], dict) and content[pid].get("split") not in wanted for pid in ids)
    if others:
        line = "%s: %d of %d ids of split %s belong to another split by their own field."
        log.warning(line, splits_file, others, len(ids), split)


def _kind(value: Any) -> str:
    return "null" if value is None else f"{type(value).__name__} ({str(value)[:40]!r})"
