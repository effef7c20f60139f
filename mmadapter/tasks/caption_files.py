"""Caption annotations and results files, read for scoring: every entry is checked, a bad one told by file and place.

Annotations: an official captions_*.json (whole, or the images of a split list), or Karpathy's dataset_coco.json.
Results: COCO's list of {"image_id": int, "caption": str}, one an image.

Captions are taken word for word: readers of training data leave empty ones out, which the reference scorers count.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.data.readers.coco import scored_captions
from mmadapter.data.readers.defects import BadEntry, entry_field
from mmadapter.data.readers.json_file import read_json
from mmadapter.errors import InputError

SHOWN_IDS = 5


@dataclass(frozen=True)
class Annotated:
    """The pictures of one split, in the file's order, with their captions as they stand there."""

    references: dict[int, list[str]]
    split: str


def read_annotations(file: Path, split: str, split_list: Path | None = None) -> Annotated:
    """The captioned images of `file` that belong to the split: all of an official file, those of `split_list`, or, of
    dataset_coco.json, Karpathy's `split`."""
    found = scored_captions(file, split)
    references: dict[int, list[str]] = {}
    for one in found.splits.get(split, []):
        if not isinstance(one.image_id, int):
            raise InputError(f"{file}: the image id {one.image_id!r} is no number, so that no result can name it.")
        references[one.image_id] = [text for _, text in one.captions]
    name = split if found.has_splits else file.stem
    if split_list is not None:
        references, name = of_list(file, references, split_list), split_list.stem
    bare = [id for id, captions in references.items() if not captions]
    if bare or not references:
        what = f"{len(bare)} images have no caption: {some(bare)}" if bare else "there is no image in this split"
        raise InputError(f"{file}, {name}: {what}; nothing can be scored against them. Check the file and task.split.")
    return Annotated(references, name)


def of_list(file: Path, references: dict[int, list[str]], split_list: Path) -> dict[int, list[str]]:
    """The images that a split list names: lines such as "val2014/COCO_val2014_000000391895.jpg 391895" (the id is what
    counts), a file name, or an id alone."""
    wanted = []
    for number, line in enumerate(split_list.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            digits = re.search(r"(\d+)(?:\.\w+)?\s*$", line)
            if digits is None:
                raise InputError(f"{split_list}, line {number}: {line[:80]!r} names no image id.")
            wanted.append(int(digits[1]))
    refuse_twice(str(split_list), "the list", wanted)
    absent = [id for id in wanted if id not in references]
    if absent:
        raise InputError(
            f"{split_list}: {len(absent)} of its {len(wanted)} images are not in {file}: {some(absent)}. "
            "Give the annotations that hold them all (Karpathy's splits lie in captions_val2014.json)."
        )
    return {id: references[id] for id in wanted}


def read_results(file: Path, annotated: Annotated, *, allow_subset: bool = False) -> dict[int, str]:
    """The caption of each image, in the annotations' order; every image must have one, unless a subset is allowed."""
    entries = read_json(file)
    if not isinstance(entries, list) or not entries:
        got = "an empty list" if entries == [] else f"a JSON {type(entries).__name__}"
        raise InputError(f'{file}: holds {got}; it must be a list of {{"image_id": 42, "caption": "a dog"}}.')
    captions: list[tuple[int, str]] = []
    for number, entry in enumerate(entries):
        where = f"{file}, entry {number}"
        id = checked(where, entry, "image_id", int)
        if id not in annotated.references:
            raise InputError(
                f"{where}: image_id {id} is not among the {len(annotated.references)} images of {annotated.split}. "
                "Check task.annotations, task.split and task.split_list."
            )
        captions.append((id, checked(where, entry, "caption", str)))
    refuse_twice(str(file), "the results", (id for id, _ in captions))
    of_image = dict(captions)
    missing = [id for id in annotated.references if id not in of_image]
    if missing and not allow_subset:
        raise InputError(
            f"{file}: {len(missing)} of the {len(annotated.references)} images of {annotated.split} have no caption: "
            f"{some(missing)}. One caption an image is scored; task.split_list=FILE or task.split choose the images, "
            "task.allow_subset=true scores a part and labels it so."
        )
    return {id: of_image[id] for id in annotated.references if id in of_image}


def checked(where: str, entry: Any, name: str, kind: type) -> Any:
    """A field of an entry; raises InputError where it is missing or of another type."""
    try:
        return entry_field(entry, name, kind)
    except BadEntry as error:
        raise InputError(f"{where}: {error}.") from error


def refuse_twice(file: str, where: str, ids: Iterable[int]) -> None:
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise InputError(f"{file}: {len(twice)} image ids stand more than once in {where}: {some(twice)}.")


def some(ids: list[int]) -> str:
    return ", ".join(map(str, ids[:SHOWN_IDS])) + (", ..." if len(ids) > SHOWN_IDS else "")
