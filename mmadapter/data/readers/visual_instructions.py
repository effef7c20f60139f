"""Instructions about pictures with a rule for the answer: the words that must, and that must not, stand in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmadapter.data.readers.images_on_disk import check_missing_image, settle_missing_images
from mmadapter.data.readers.json_file import read_json
from mmadapter.data.samples import Sample
from mmadapter.data.templates import alpaca_segments
from mmadapter.errors import InputError

TEXTS = ("instruction", "image", "answer", "attribute")
LISTS = ("wrong", "unasked")


def read_visual_instructions(
    path: Path,
    *,
    training: bool,
    split: str = "test",
    source: str = "visual_instructions",
    limit: int | None = None,
    missing_image: str = "error",
    with_images: bool = True,
) -> list[Sample]:
    """The items of a JSON list of {instruction, image, answer, wrong, unasked, attribute}; `image` is relative to it.

    They are there to be asked, not to be trained on: `answer` is a word and no text to learn. Raises InputError with
    file and item for a field that is missing or of another kind, and where `training` is asked for.
    """
    check_missing_image(missing_image)
    file = Path(path)
    if split != "test":
        raise InputError(f"The split of source {source} is {split!r}; visual instructions have one only: test.")
    if training:
        raise InputError(
            f"{file}: visual instructions hold rules, no answers to learn. Use them in a task, not a source."
        )
    items = read_json(file)
    if not isinstance(items, list) or not items:
        raise InputError(f"{file}: expected a list of items with {', '.join((*TEXTS, *LISTS))}.")
    samples = [_sample(file, number, item, source, with_images) for number, item in enumerate(items[:limit])]
    return settle_missing_images(samples, missing_image, str(file))


def _sample(file: Path, number: int, item: Any, source: str, with_images: bool) -> Sample:
    where = f"{file.name}, item {number}"
    if not isinstance(item, dict):
        raise InputError(f"{file}, item {number}: expected an object, got {type(item).__name__}.")
    for name in TEXTS:
        if not isinstance(item.get(name), str) or not item[name].strip():
            raise InputError(f"{file}, item {number}: `{name}` is {item.get(name)!r}; it must be text and not empty.")
    for name in LISTS:
        words = item.get(name)
        if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
            raise InputError(f"{file}, item {number}: `{name}` is {str(words)[:60]}; it must be a list of words.")
    return Sample(
        id=str(number),
        source=source,
        segments=alpaca_segments(item["instruction"]),
        image=file.parent / item["image"] if with_images else None,
        where=where,
        meta={name: item[name] for name in (*TEXTS, *LISTS)},
    )
