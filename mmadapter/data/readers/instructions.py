"""Instructions and dialogs: Alpaca's layout, LLaVA-Instruct, ShareGPT, and the file lists of official V2's fine-tuning.

An item is answered turns of human and assistant; {instruction, input, output} is one turn. Known weaknesses of public
files (WEAK) are left out and counted; everything else that is wrong with an item stops the run, or is left out and
counted with on_bad=skip.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmadapter.data.chat_templates import THINKING_ENDS, drops_thinking
from mmadapter.data.readers import Purpose, only_file
from mmadapter.data.readers.items import ALPACA, DIALOGS, EITHER, ItemLayout, ReadItem, parsed_items
from mmadapter.data.readers.json_file import read_items
from mmadapter.data.readers.meta_list import read_meta_list
from mmadapter.data.readers.pictures import ImageFolders, settle_missing_images
from mmadapter.data.samples import Sample
from mmadapter.data.settings import (
    AlpacaSettings,
    InstructionSettings,
    LlavaSettings,
    SharegptSettings,
    V2InstructionsSettings,
)
from mmadapter.data.templates import chosen_template, rendered
from mmadapter.errors import InputError

log = logging.getLogger(__name__)


def read_alpaca(settings: AlpacaSettings, purpose: Purpose) -> list[Sample]:
    """The items of one split, in the file's order; items with an empty output are left out and counted.

    Deviates: V1's validation items are the first 200 of the training items. Here `val` holds the `val_size` items (at
    most a tenth) whose (instruction, input) has the smallest hash, and `train` all others: the same ones however the
    file is ordered. Items with equal (instruction, input) stand on the same side.
    Deviates: V2's fine-tuning code takes the template with input where `input` is empty; here as in V1 and Alpaca it
    is the one without.
    """
    return instruction_samples([_file(settings, "alpaca_data.json")], ALPACA, settings, purpose)


def read_llava(settings: LlavaSettings, purpose: Purpose) -> list[Sample]:
    """LLaVA-Instruct's dialogs, every answer of which is learned; pictures are named from the folder `root`.

    Items may lack a picture. `val` holds the dialogs of the `val_size` pictures with the smallest hash (at most a
    tenth), `train` all others: several dialogs are about one picture, and they stand on the same side.
    """
    return instruction_samples([_file(settings, "llava_instruct_150k.json")], DIALOGS, settings, purpose)


def read_sharegpt(settings: SharegptSettings, purpose: Purpose) -> list[Sample]:
    """ShareGPT's dialogs in the chat template, without pictures; what does not alternate human and gpt is left out."""
    return instruction_samples([_file(settings, "sharegpt.json")], DIALOGS, settings, purpose)


def read_v2_instructions(settings: V2InstructionsSettings, purpose: Purpose) -> list[Sample]:
    """Everything that official V2's YAML lists: files whose items are dialogs about pictures, or instructions.

    Deviates: V2 reads the first turn of a dialog only, leaves `<image>` in its text, and gives an item without a
    picture a black one. Here all turns are learned, the mark is taken out, and no picture is none.
    """

    root = None if settings.root is None else Path(settings.root)
    listed = [file for file, _ in read_meta_list(_file(settings, "data.yaml"), root)]
    return instruction_samples(listed, EITHER, settings, purpose)


def _file(settings: InstructionSettings, default_name: str) -> Path:
    """The file that the settings name, or in a folder the one called `default_name`, or its only JSON file."""
    path = Path(settings.path or settings.root or "")
    if path.is_dir():
        usual = path / default_name
        return usual if usual.is_file() else only_file(path, (".json",), f"{default_name} or one other file")
    return path


def places_of_split(
    keys: Sequence[Sequence[str]],
    split: str,
    val_size: int,
    val_fraction: float = 0.1,
    whole: Callable[[int], str] | None = None,
    count_items: bool = False,
) -> list[int]:
    """The places of the items in `split`; items with equal keys stand on the same side.

    `val` holds the `val_size` keys (at most `val_fraction` of them, at least one) with the smallest hash, `train` the
    others, `all` everything: the same ones however the file is ordered. With `count_items` the sizes are those of
    items, not keys. `whole` gives all of the item at a place: where more than a quarter of the items have one key
    (dialogs that begin with the same question), this is their key instead.
    """
    if split == "all":
        return list(range(len(keys)))
    owners = Counter(map(tuple, keys))
    shared = {key for key, count in owners.items() if count > max(len(keys) / 4, 1)} if whole is not None else set()
    hashes = []
    for place, key in enumerate(keys):
        told = [*key, whole(place)] if whole is not None and tuple(key) in shared else list(key)
        hashes.append(hashlib.sha256(json.dumps(told).encode()).hexdigest())
    sizes = Counter(hashes)
    distinct = sorted(sizes)
    most = min(val_size, max(int((len(keys) if count_items else len(distinct)) * val_fraction + 1e-9), 1))
    if not count_items:
        held_out = set(distinct[:most])
    else:
        held_out, items = set(distinct[:1]), sizes[distinct[0]] if distinct else 0
        for one in distinct[1:]:
            if items + sizes[one] > most:
                break
            held_out.add(one)
            items += sizes[one]
    return [place for place, one in enumerate(hashes) if (one in held_out) == (split == "val")]


def instruction_samples(
    files: Sequence[Path], layout: ItemLayout, settings: InstructionSettings, purpose: Purpose
) -> list[Sample]:
    """The samples of one split of all `files` together, in order. Raises InputError naming file and item.

    Without training, a sample's last turn is to be answered, and its answer is in meta["references"].
    """
    read: list[ReadItem] = []
    for file in files:
        found = parsed_items(file, read_items(file), layout, settings.ignore)
        if not settings.may_leave:
            found.leave_out_outside([Path(settings.root or file.parent)])
        remedy = (
            f"Fix them, or set on_bad=skip (they are left out); `mmadapter check instruct --root {file} --check` lists "
            "what is wrong in a file."
        )
        found.defects.settle(str(file), remedy, skip=settings.on_bad == "skip")
        for notice in found.notices():
            log.warning("%s", notice)
        if not settings.has_pictures and (pictures := sum(one.item.image is not None for one in found.items)):
            log.warning(
                "%s: %d items have a picture, which reader=%s leaves out. Set reader=own (or llava) to read them.",
                *(file, pictures, settings.reader),
            )
        read += found.items
    what = ", ".join(str(file) for file in files)
    keys = [one.item.key for one in read]
    places = places_of_split(
        keys, settings.split, settings.val_size, settings.val_fraction, lambda place: read[place].item.whole
    )
    if not places:
        raise InputError(f"{what}: split {settings.split!r} holds no item; usable are {len(read)}.")

    folders: dict[Path, ImageFolders] = {}

    def find(one: ReadItem, name: str) -> Path:
        root = Path(settings.root or one.file.parent)
        return folders.setdefault(root, ImageFolders(root)).find(name)

    chosen = [read[place] for place in places[: settings.limit]]
    samples = item_samples(chosen, settings, purpose, find, several_files=len(files) > 1)
    return settle_missing_images(samples, settings.missing_image, what)


def item_samples(
    items: Sequence[ReadItem],
    settings: InstructionSettings,
    purpose: Purpose,
    find: Callable[[ReadItem, str], Path],
    several_files: bool = False,
) -> list[Sample]:
    """A sample an item, with the picture that `find` finds; in training one for each of its right answers.

    Without training, the last turn is to be answered. meta has `instruction`, `input`, `output` and `references`, and
    of multiple choice `choices` and `answer`, the index.
    """
    template = chosen_template(settings.template, purpose.tokenizer, settings.OTHERWISE)
    if template == "auto" and drops_thinking(purpose.tokenizer):
        thinking = [one.where for one in items if any(THINKING_ENDS in (turn.answer or "") for turn in one.item.turns)]
        if thinking:
            line = "%d items have thinking blocks in answers; the host's chat template drops them (the first: %s)."
            log.warning(line, len(thinking), thinking[0])
    samples = []
    for one in items:
        item, system = one.item, settings.system if one.item.system is None else one.item.system
        image = find(one, item.image) if item.image is not None and settings.uses_pictures else None
        last = item.turns[-1]
        references = item.references
        meta: dict[str, Any] = {
            "instruction": last.asked,
            "input": last.context,
            "output": references[0],
            "references": references,
        }
        if item.choices:
            meta |= {"choices": list(item.choices), "answer": item.choice}
        name = str(one.number) if not several_files else f"{one.file.stem}-{one.number}"
        for number, answer in enumerate(references if purpose.training else [None]):
            turns = (*item.turns[:-1], replace(last, answer=answer))
            segments = rendered(turns, system, template, purpose.tokenizer)
            own = f"{name}-{number}" if purpose.training and len(references) > 1 else name
            samples.append(Sample(own, purpose.source, segments, image, one.where, meta))
    return samples
