"""From files of instruction items to samples: what is left out is counted, validation is kept apart, pictures found."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.data.readers.held_out import places_of_split
from mmadapter.data.readers.images_on_disk import check_missing_image, settle_missing_images
from mmadapter.data.readers.instruction_items import Dropped, Item
from mmadapter.data.readers.json_file import read_json, read_json_lines
from mmadapter.data.samples import Sample
from mmadapter.data.templates import CHAT_SYSTEM, DIALOG_TEMPLATES, alpaca_segments, dialog_segments
from mmadapter.errors import InputError

log = logging.getLogger(__name__)
PICTURE_FOLDERS = ("", "images", "train2017", "train2014")
Parse = Callable[[Any], Item]


@dataclass(frozen=True)
class InstructionSettings:
    """How items become samples; the settings of the readers that share this file."""

    training: bool
    split: str
    val_size: int
    source: str
    limit: int | None
    template: str = "alpaca"
    system: str = CHAT_SYSTEM
    root: Path | None = None
    """Where the pictures are; None = beside the file."""
    missing_image: str = "error"
    with_images: bool = False

    def __post_init__(self) -> None:
        check_missing_image(self.missing_image)
        if self.template not in DIALOG_TEMPLATES:
            raise InputError(f"template is {self.template!r}; allowed: {', '.join(DIALOG_TEMPLATES)}.")


def instruction_samples(files: Sequence[Path], parse: Parse, settings: InstructionSettings) -> list[Sample]:
    """The samples of one split of all `files` together, in order. Raises InputError naming file and item.

    Without training, a sample's last turn is to be answered, and its answer is in meta["references"].
    """
    read = [(file, number, item) for file in files for number, item in _read_items(file, parse)]
    what = ", ".join(str(file) for file in files)
    keys = [item.key for _, _, item in read]
    places = places_of_split(keys, settings.split, settings.val_size, settings.source)
    if not places:
        raise InputError(f"{what}: split {settings.split!r} holds no item; usable are {len(read)}.")
    pictures: dict[tuple[Path, str], Path] = {}
    samples = []
    for place in places[: settings.limit]:
        file, number, item = read[place]
        image = None
        if item.image is not None and settings.with_images:
            root = settings.root or file.parent
            image = pictures.get((root, item.image)) or picture_file(root, item.image)
            pictures[root, item.image] = image
        name = str(number) if len(files) == 1 else f"{file.stem}-{number}"
        samples.append(_sample(name, f"{file.name}, item {number}", item, image, settings))
    return settle_missing_images(samples, settings.missing_image, what) if pictures else samples


def instruction_file(path: Path, default_name: str) -> Path:
    """The file that `path` names, or in a folder the one called `default_name`, or its only JSON file."""
    if not path.is_dir():
        return path
    found = [path / default_name] if (path / default_name).is_file() else sorted(path.glob("*.json"))
    if len(found) != 1:
        raise InputError(f"{path}: expected {default_name} or one *.json there, found {len(found)}. Name the file.")
    return found[0]


def read_raw_items(file: Path) -> list[Any]:
    """The list of items in a JSON file, or in JSON lines where the name ends in .jsonl."""
    items = read_json_lines(file) if file.suffix == ".jsonl" else read_json(file)
    if not isinstance(items, list):
        raise InputError(f"{file}: expected a list of items, got {type(items).__name__}.")
    return items


def _read_items(file: Path, parse: Parse) -> list[tuple[int, Item]]:
    raw, found, left_out = read_raw_items(file), [], Counter[str]()
    for number, entry in enumerate(raw):
        try:
            found.append((number, parse(entry)))
        except Dropped as reason:
            left_out[str(reason)] += 1
        except InputError as error:
            raise InputError(f"{file}, item {number}: {error}") from error
    if left_out:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sorted(left_out.items()))
        log.warning("%s: %d of %d items are left out (%s).", file, left_out.total(), len(raw), reasons)
    if open_ends := sum(item.open_end for _, item in found):
        log.warning("%s: %d dialogs end with a question; that last turn is left out.", file, open_ends)
    return found


def picture_file(root: Path, name: str) -> Path:
    """Where the picture is: below the root as the file says, or in one of the usual folders there."""
    candidates = [root / folder / name for folder in PICTURE_FOLDERS]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def _sample(name: str, where: str, item: Item, image: Path | None, settings: InstructionSettings) -> Sample:
    asked, answer = item.turns[-1]
    given = answer if settings.training else None
    if settings.template == "alpaca" and len(item.turns) == 1:
        segments = alpaca_segments(asked, item.context, given)
    else:
        segments = dialog_segments([*item.turns[:-1], (asked, given)], settings.template, settings.system)
    meta = {"instruction": asked, "input": item.context, "output": answer, "references": [answer]}
    return Sample(name, settings.source, segments, image, where, meta)
