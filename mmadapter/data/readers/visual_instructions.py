"""Instructions about pictures with a rule for the answer: the words that must, and that must not, stand in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmadapter.data.readers import Purpose
from mmadapter.data.readers.defects import BadEntry, Defects, entry_field
from mmadapter.data.readers.items import BAD_ITEM
from mmadapter.data.readers.json_file import read_items
from mmadapter.data.readers.pictures import OUTSIDE, is_outside, settle_missing_images
from mmadapter.data.samples import Sample
from mmadapter.data.settings import VisualInstructionsSettings
from mmadapter.data.templates import Turn, rendered
from mmadapter.errors import InputError, described

TEXTS = ("instruction", "image", "answer", "attribute")
LISTS = ("wrong", "unasked")


def read_visual_instructions(settings: VisualInstructionsSettings, purpose: Purpose) -> list[Sample]:
    """The items of a JSON list of {instruction, image, answer, wrong, unasked, attribute}; `image` is relative to it.

    They are there to be asked, not to be trained on: `answer` is a word and no text to learn. Raises InputError with
    file and item for a field that is missing or of another kind, and where training is asked for.
    """
    file = Path(settings.path or settings.root or "")
    if purpose.training:
        raise InputError(
            f"{file}: visual instructions hold rules, no answers to learn. Use them in a task, not a source."
        )
    defects, samples = Defects(), []
    for number, item in enumerate(read_items(file)[: settings.limit]):
        where = f"{file.name}, item {number}"
        try:
            meta = _checked(item)
        except BadEntry as error:
            defects.add(BAD_ITEM, f"{where}: {error}")
            continue
        if not settings.may_leave and is_outside(meta["image"], [file.parent]):
            defects.add(OUTSIDE, f"{where}: `image` is {meta['image'][:200]!r}")
            continue
        image = file.parent / meta["image"] if settings.images else None
        segments = rendered([Turn(meta["instruction"], None)], None, settings.template, purpose.tokenizer)
        samples.append(Sample(str(number), purpose.source, segments, image, where, meta))
    defects.settle(str(file), "Fix them, or take them out.")
    if not samples:
        raise InputError(f"{file}: expected a list of items with {', '.join((*TEXTS, *LISTS))}; it is empty.")
    return settle_missing_images(samples, settings.missing_image, str(file))


def _checked(item: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in TEXTS:
        found[name] = entry_field(item, name, str)
        if not found[name].strip():
            raise BadEntry(f"`{name}` is empty; it must be text")
    for name in LISTS:
        found[name] = entry_field(item, name, list)
        if not all(isinstance(word, str) and word for word in found[name]):
            raise BadEntry(f"`{name}` is {described(found[name])}; it must be a list of words")
    return found
