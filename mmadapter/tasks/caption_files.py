"""Caption annotations and results read for scoring: checked by us (file, entry, what is wrong), then by pycocotools.

Annotations: an official captions_*.json (whole, or the images of a split list), or Karpathy's dataset_coco.json.
Results: COCO's list of {"image_id": int, "caption": str}, one an image.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from mmadapter.data.readers.coco import scored_captions
from mmadapter.data.readers.json_file import read_json
from mmadapter.errors import InputError

SHOWN_IDS = 5


@dataclass(frozen=True)
class Annotated:
    """The pictures of one split, in the file's order, with their captions as they stand there."""

    references: dict[int, list[str]]
    split: str
    coco: Any  # pycocotools.coco.COCO


def read_annotations(file: Path, split: str, split_list: Path | None = None) -> Annotated:
    """The captioned images of `file` that belong to the split: all of an official file, those of `split_list`, or, of
    dataset_coco.json, Karpathy's `split`."""
    found = scored_captions(file, split)
    pictures = found.splits.get(split, [])
    data: dict[str, Any] = {
        "info": {},
        "images": [{"id": one.image_id, "file_name": one.image.name} for one in pictures],
        "annotations": [{"image_id": one.image_id, "caption": text} for one in pictures for _, text in one.captions],
    }
    for number, note in enumerate(data["annotations"], 1):
        note["id"] = number
    named = split if found.has_splits else file.stem
    if split_list is not None:
        data, named = _of_list(file, data, split_list), split_list.stem
    references: dict[int, list[str]] = {image["id"]: [] for image in data["images"]}
    for note in data["annotations"]:
        references[note["image_id"]].append(note["caption"])
    bare = [id for id, captions in references.items() if not captions]
    if bare or not references:
        what = f"{len(bare)} images have no caption: {_some(bare)}" if bare else "there is no image in this split"
        raise InputError(f"{file}, {named}: {what}; nothing can be scored against them. Check the file and task.split.")
    return Annotated(references, named, _quiet_coco(data))


def _quiet_coco(data: dict[str, Any]) -> Any:
    from pycocotools.coco import COCO

    with redirect_stdout(StringIO()):
        coco = COCO()
        coco.dataset = data
        coco.createIndex()
    return coco


def _of_list(file: Path, data: dict[str, Any], split_list: Path) -> dict[str, Any]:
    """The images that a split list names: lines such as "val2014/COCO_val2014_000000391895.jpg 391895" (the id is what
    counts), a file name, or an id alone."""
    wanted = []
    for number, line in enumerate(split_list.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            digits = re.search(r"(\d+)(?:\.\w+)?\s*$", line)
            if digits is None:
                raise InputError(f"{split_list}, line {number}: {line[:80]!r} names no image id.")
            wanted.append(int(digits[1]))
    _refuse_twice(str(split_list), "the list", wanted)
    images = {image["id"]: image for image in data["images"]}
    absent = [id for id in wanted if id not in images]
    if absent:
        raise InputError(
            f"{split_list}: {len(absent)} of its {len(wanted)} images are not in {file}: {_some(absent)}. "
            "Give the annotations that hold them all (Karpathy's splits lie in captions_val2014.json)."
        )
    chosen = set(wanted)
    notes = [note for note in data["annotations"] if note["image_id"] in chosen]
    return {**data, "images": [images[id] for id in wanted], "annotations": notes}


def read_results(file: Path, annotated: Annotated, *, allow_subset: bool = False) -> dict[int, str]:
    """The caption of each image, in the annotations' order; every image must have one, unless a subset is allowed."""
    entries = read_json(file)
    if not isinstance(entries, list) or not entries:
        got = "an empty list" if entries == [] else f"a JSON {type(entries).__name__}"
        raise InputError(f'{file}: holds {got}; it must be a list of {{"image_id": 42, "caption": "a dog"}}.')
    ids = []
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        id = _field(where, entry, "image_id", int)
        if id not in annotated.references:
            raise InputError(
                f"{where}: image_id {id} is not among the {len(annotated.references)} images of {annotated.split}. "
                "Check task.annotations, task.split and task.split_list."
            )
        _field(where, entry, "caption", str)
        ids.append(id)
    _refuse_twice(str(file), "the results", ids)
    missing = [id for id in annotated.references if id not in set(ids)] if len(ids) < len(annotated.references) else []
    if missing and not allow_subset:
        raise InputError(
            f"{file}: {len(missing)} of the {len(annotated.references)} images of {annotated.split} have no caption: "
            f"{_some(missing)}. One caption an image is scored; task.split_list=FILE or task.split choose the images, "
            "task.allow_subset=true scores a part and labels it so."
        )
    with redirect_stdout(StringIO()):
        loaded = annotated.coco.loadRes([dict(entry) for entry in entries])
    return {id: loaded.imgToAnns[id][0]["caption"] for id in annotated.references if id in loaded.imgToAnns}


def _field(where: str, entry: Any, name: str, kind: type) -> Any:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, got {type(entry).__name__}.")
    if name not in entry:
        raise InputError(f"{where}: the field `{name}` is missing; it has: {', '.join(map(str, entry)) or 'nothing'}.")
    value = entry[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        got = "null" if value is None else f"{type(value).__name__} {str(value)[:60]!r}"
        raise InputError(f"{where}: `{name}` is {got}; it must be {kind.__name__}.")
    return value


def _refuse_twice(file: str, where: str, ids: Iterable[int]) -> None:
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise InputError(f"{file}: {len(twice)} image ids stand more than once in {where}: {_some(twice)}.")


def _some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:SHOWN_IDS])) + (", ..." if len(ids) > SHOWN_IDS else "")
