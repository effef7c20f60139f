"""Instructions and dialogs: Alpaca's layout, LLaVA-Instruct, ShareGPT, and the file lists of official V2's fine-tuning.

An item is answered turns of human and assistant; {instruction, input, output} is one turn. Known weaknesses of public
files (WEAK) are left out and counted; everything else that is wrong with an item stops the run.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmadapter.data.chat_templates import THINKING_ENDS, drops_thinking
from mmadapter.data.readers import Purpose, only_file
from mmadapter.data.readers.defects import BadEntry, Defects, described, entry_field
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
from mmadapter.data.templates import Turn, chosen_template, rendered
from mmadapter.errors import InputError

log = logging.getLogger(__name__)
MARKER = "<image>"
ROLES = ("human", "gpt")
BAD_ITEM = "bad items"
EMPTY_OUTPUT = "empty output"
OTHER_ROLE = "another role than human and gpt"
GPT_FIRST = "starts with gpt"
NOT_IN_TURN = "human and gpt do not alternate"
EMPTY_TURN = "empty turn"
NO_ANSWER = "no answered turn"
WEAK = (EMPTY_OUTPUT, OTHER_ROLE, GPT_FIRST, NOT_IN_TURN, EMPTY_TURN, NO_ANSWER)


def read_alpaca(settings: AlpacaSettings, purpose: Purpose) -> list[Sample]:
    """The items of one split, in the file's order; items with an empty output are left out and counted.

    Deviates: V1's validation items are the first 200 of the training items. Here `val` holds the `val_size` items (at
    most a tenth) whose (instruction, input) has the smallest hash, and `train` all others: the same ones however the
    file is ordered. Items with equal (instruction, input) stand on the same side.
    Deviates: V2's fine-tuning code takes the template with input where `input` is empty; here as in V1 and Alpaca it
    is the one without.
    """
    return instruction_samples([_file(settings, "alpaca_data.json")], instruction_item, settings, purpose)


def read_llava(settings: LlavaSettings, purpose: Purpose) -> list[Sample]:
    """LLaVA-Instruct's dialogs, every answer of which is learned; pictures are named from the folder `root`.

    Items may lack a picture. `val` holds the dialogs of the `val_size` pictures with the smallest hash (at most a
    tenth), `train` all others: several dialogs are about one picture, and they stand on the same side.
    """
    return instruction_samples([_file(settings, "llava_instruct_150k.json")], dialog_item, settings, purpose)


def read_sharegpt(settings: SharegptSettings, purpose: Purpose) -> list[Sample]:
    """ShareGPT's dialogs in the chat template, without pictures; what does not alternate human and gpt is left out."""
    return instruction_samples([_file(settings, "sharegpt.json")], dialog_item, settings, purpose)


def read_v2_instructions(settings: V2InstructionsSettings, purpose: Purpose) -> list[Sample]:
    """Everything that official V2's YAML lists: files whose items are dialogs about pictures, or instructions.

    Deviates: V2 reads the first turn of a dialog only, leaves `<image>` in its text, and gives an item without a
    picture a black one. Here all turns are learned, the mark is taken out, and no picture is none.
    """

    def item(raw: Any) -> Item:
        return dialog_item(raw) if isinstance(raw, dict) and "conversations" in raw else instruction_item(raw)

    root = None if settings.root is None else Path(settings.root)
    listed = [file for file, _ in read_meta_list(_file(settings, "data.yaml"), root)]
    return instruction_samples(listed, item, settings, purpose)


def _file(settings: InstructionSettings, default_name: str) -> Path:
    """The file that the settings name, or in a folder the one called `default_name`, or its only JSON file."""
    path = Path(settings.path or settings.root or "")
    if path.is_dir():
        usual = path / default_name
        return usual if usual.is_file() else only_file(path, (".json",), f"{default_name} or one other file")
    return path


# Items.


@dataclass(frozen=True, slots=True)
class Item:
    """Answered turns, with a picture and a system text of its own where there is one."""

    turns: tuple[Turn, ...]
    image: str | None = None
    system: str | None = None
    open_end: bool = False
    """Whether a last human turn without an answer was left out."""

    @property
    def key(self) -> tuple[str, str]:
        """What decides on which side of a split the item stands: its picture, else its first question and input."""
        return ("image", self.image) if self.image else (self.turns[0].asked, self.turns[0].context)


def instruction_item(entry: Any) -> Item:
    """An item of Alpaca's layout (GPT-4-LLM's as well). Raises BadEntry, EMPTY_OUTPUT among its reasons."""
    asked, answer = entry_field(entry, "instruction", str), entry_field(entry, "output", str)
    context = entry_field({"input": "", **entry}, "input", str)
    if not asked.strip():
        raise BadEntry("`instruction` is empty. Give it a text or take the item out", BAD_ITEM)
    if not answer.strip():
        raise BadEntry(EMPTY_OUTPUT, EMPTY_OUTPUT)
    return Item((Turn(asked, answer, context),))


def dialog_item(entry: Any) -> Item:
    """An item of LLaVA's and ShareGPT's layout, {id, image, conversations: [{from, value}]}; `image` may be missing.

    `<image>` stands once, first or last in the first human turn, and is taken out. Elsewhere, twice or without `image`
    it is an error. Deviates: the official V2 code leaves it in the text. Raises BadEntry, with a reason of WEAK or not.
    """
    said = turns_of(entry)
    image = entry.get("image")
    if image is not None and (not isinstance(image, str) or not image.strip()):
        raise BadEntry(f"`image` is {described(image)}; it must be a file name (or be left out)")
    marks = sum(text.count(MARKER) for _, text in said)
    if marks > 1:
        raise BadEntry(f"{MARKER} stands {marks} times; one picture an item is what an adapter can see")
    if marks:
        role, bare = said[0][0], said[0][1].strip()
        if role != "human" or not (bare.startswith(MARKER) or bare.endswith(MARKER)):
            raise BadEntry(f"{MARKER} must stand first or last in the first human turn")
        if image is None:
            raise BadEntry(f"{MARKER} stands in the text, but the item names no `image`")
        said = [(role, bare.replace(MARKER, "").strip()), *said[1:]]
    weakness = None
    if any(role not in ROLES for role, _ in said):
        weakness = OTHER_ROLE
    elif said and said[0][0] == "gpt":
        weakness = GPT_FIRST
    elif any(role != ROLES[place % 2] for place, (role, _) in enumerate(said)):
        weakness = NOT_IN_TURN
    elif any(not text.strip() for _, text in said):
        weakness = EMPTY_TURN
    elif len(said) < 2:
        weakness = NO_ANSWER
    if weakness is not None:
        raise BadEntry(weakness, weakness)
    answered = zip(said[0::2], said[1::2], strict=False)
    turns = tuple(Turn(asked, answer) for (_, asked), (_, answer) in answered)
    return Item(turns, image, open_end=len(said) % 2 == 1)


def turns_of(entry: Any) -> list[tuple[str, str]]:
    """(role, text) of every turn of a dialog, as the file has them. Raises BadEntry where it is no dialog."""
    said = []
    for number, turn in enumerate(entry_field(entry, "conversations", list)):
        try:
            said.append((entry_field(turn, "from", str), entry_field(turn, "value", str)))
        except BadEntry as error:
            raise BadEntry(f"conversations[{number}]: {error}") from error
    return said


# Files.


@dataclass(frozen=True, slots=True)
class ReadItem:
    """One usable item and where it stands."""

    file: Path
    number: int
    id: Any
    item: Item

    @property
    def where(self) -> str:
        return f"{self.file.name}, item {self.number}"


@dataclass
class InstructionFile:
    """What a file of items holds, and what was wrong."""

    items: list[ReadItem] = field(default_factory=list)
    defects: Defects = field(default_factory=lambda: Defects(harmless=WEAK))


def parsed_items(file: Path, raw: Sequence[Any], parse: Callable[[Any], Item]) -> InstructionFile:
    """The usable ones among the raw items of a file; the others are counted by reason."""
    found = InstructionFile()
    for number, entry in enumerate(raw):
        try:
            item = parse(entry)
            found.items.append(ReadItem(file, number, entry.get("id", number), item))
        except BadEntry as error:
            where = f"{file.name}, item {number}"
            if error.reason in WEAK:
                found.defects.add(error.reason, where)
            else:
                found.defects.add(BAD_ITEM, f"{where}: {error}")
    return found


def places_of_split(keys: Sequence[Sequence[str]], split: str, val_size: int) -> list[int]:
    """The places of the items in `split`; items with equal keys stand on the same side.

    `val` holds the `val_size` keys (at most a tenth of them, at least one) with the smallest hash, `train` the others,
    `all` everything: the same ones however the file is ordered.
    """
    if split == "all":
        return list(range(len(keys)))
    hashes = [hashlib.sha256(json.dumps(list(key)).encode()).hexdigest() for key in keys]
    distinct = sorted(set(hashes))
    held_out = set(distinct[: min(val_size, max(len(distinct) // 10, 1))])
    return [place for place, one in enumerate(hashes) if (one in held_out) == (split == "val")]


def instruction_samples(
    files: Sequence[Path], parse: Callable[[Any], Item], settings: InstructionSettings, purpose: Purpose
) -> list[Sample]:
    """The samples of one split of all `files` together, in order. Raises InputError naming file and item.

    Without training, a sample's last turn is to be answered, and its answer is in meta["references"].
    """
    read: list[ReadItem] = []
    for file in files:
        found = parsed_items(file, read_items(file), parse)
        found.defects.settle(
            str(file), f"Fix them; `mmadapter check instruct --root {file} --check` lists what is wrong in a file."
        )
        if open_ends := sum(one.item.open_end for one in found.items):
            log.warning("%s: %d dialogs end with a question; that last turn is left out.", file, open_ends)
        read += found.items
    what = ", ".join(str(file) for file in files)
    places = places_of_split([one.item.key for one in read], settings.split, settings.val_size)
    if not places:
        raise InputError(f"{what}: split {settings.split!r} holds no item; usable are {len(read)}.")
    template = chosen_template(settings.template, purpose.tokenizer, settings.OTHERWISE)
    if template == "auto" and drops_thinking(purpose.tokenizer):
        thinking = [one.where for one in read if any(THINKING_ENDS in (turn.answer or "") for turn in one.item.turns)]
        if thinking:
            line = "%s: %d items have thinking blocks in answers; the host's chat template drops them (the first: %s)."
            log.warning(line, what, len(thinking), thinking[0])
    folders: dict[Path, ImageFolders] = {}
    samples = []
    for one in (read[place] for place in places[: settings.limit]):
        item, image = one.item, None
        if item.image is not None and settings.uses_pictures:
            root = Path(settings.root or one.file.parent)
            image = folders.setdefault(root, ImageFolders(root)).find(item.image)
        last, system = item.turns[-1], settings.system if item.system is None else item.system
        turns = item.turns if purpose.training else (*item.turns[:-1], replace(last, answer=None))
        segments = rendered(turns, system, template, purpose.tokenizer)
        name = str(one.number) if len(files) == 1 else f"{one.file.stem}-{one.number}"
        meta = {"instruction": last.asked, "input": last.context, "output": last.answer, "references": [last.answer]}
        samples.append(Sample(name, purpose.source, segments, image, one.where, meta))
    return settle_missing_images(samples, settings.missing_image, what)
