"""Checks instruction files and dialogs and writes them as JSON lines: mmadapter check instruct."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from data_prep.checks import SPLITS, Check, Entry
from data_prep.command import options, run
from mmadapter.data.readers.defects import Defects
from mmadapter.data.readers.instructions import places_of_split
from mmadapter.data.readers.items import ALPACA, DIALOGS, ROLES, WEAK, Item, parsed_items
from mmadapter.data.readers.json_file import read_items
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.errors import InputError

VAL_SIZE = 200
NO_INPUT = re.compile(r"\W*no\s*input\W*", re.IGNORECASE)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see `run` for the exit codes."""
    about = "Checks Alpaca, GPT-4-LLM, LLaVA-Instruct and ShareGPT files."
    parser = options("instruct", about, "a file, or a folder with one (or train, val, test)")
    parser.add_argument("--images", type=Path, help="folder that the pictures' names start at (default: the root)")
    parser.add_argument("--val-size", type=int, default=VAL_SIZE, help=f"items kept for val (default {VAL_SIZE})")
    return run(parser, arguments, read)


def read(settings: argparse.Namespace) -> Check:
    """The usable items of all splits, and what is wrong with the others; one file becomes train and val."""
    root: Path = settings.root
    files = _files(root)
    raw = {name: read_items(file) for name, file in files.items()}
    objects = [entry for entry in next(iter(raw.values())) if isinstance(entry, dict)]
    are_dialogs = any("conversations" in entry for entry in objects)
    if not are_dialogs and not any("instruction" in entry for entry in objects):
        raise InputError(
            f"{root}: no item has `conversations` or `instruction`; this is no file of instructions. Other layouts: "
            f"mmadapter check own {root}"
        )
    folders = ImageFolders(settings.images or (root if root.is_dir() else root.parent))
    what = f"{'dialogs' if are_dialogs else 'instructions'}: {', '.join(str(file) for file in files.values())}"
    check = Check(what, folders.root, list(files.values()), Defects(harmless=WEAK))
    items: list[Item] = []
    for name, file in files.items():
        found = parsed_items(file, raw[name], DIALOGS if are_dialogs else ALPACA)
        if not settings.pictures_anywhere:
            found.leave_out_outside([folders.root])
        check.defects.update(found.defects)
        check.notes += found.notices()
        items += [one.item for one in found.items]
        entries = [
            Entry(
                one.where,
                _line(one.id, one.item, are_dialogs),
                None if one.item.image is None else folders.find(one.item.image),
                said=one.item.key,
            )
            for one in found.items
        ]
        if name in SPLITS:
            check.splits[name] = entries
            continue
        keys = [one.item.key for one in found.items]
        for side in ("train", "val"):
            whole = [one.item.whole for one in found.items].__getitem__
            places = places_of_split(keys, side, settings.val_size, whole=whole) if keys else []
            check.splits[side] = [entries[place] for place in places]
    if no_input := sum(bool(NO_INPUT.fullmatch(item.turns[-1].context)) for item in items):
        check.notes.append(f'inputs that say "no input": {no_input:,} (kept as they are)')
    said = Counter(item.whole for item in items)
    if repeated := said.total() - len(said):
        check.repetitions.append(f"repeated items, word for word: {repeated:,}")
    return check


def _files(root: Path) -> dict[str, Path]:
    """The file of every split; "all" where there is one file to be split."""
    if not root.is_dir():
        return {"all": root}
    found = sorted(file for pattern in ("*.json", "*.jsonl") for file in root.glob(pattern) if file.stem != "manifest")
    named = {split: file for split in SPLITS for file in found if file.stem == split}
    if "train" in named:
        return named
    if len(found) != 1:
        names = ", ".join(file.name for file in found) or "none"
        raise InputError(f"{root}: expected one JSON file, or train.json and val.json; found: {names}. Name the file.")
    return {"all": found[0]}


def _line(name: Any, item: Item, is_dialog: bool) -> dict[str, Any]:
    """The item in its own layout, without the picture's mark; the readers read it again."""
    image = {} if item.image is None else {"image": item.image}
    system = {} if item.system is None else {"system": item.system}
    if not is_dialog:
        *earlier, last = item.turns
        history = {"history": [[turn.asked, turn.answer] for turn in earlier]} if earlier else {}
        return {"instruction": last.asked, "input": last.context, "output": last.answer, **history, **system, **image}
    said = [
        {"from": role, "value": text}
        for turn in item.turns
        for role, text in zip(ROLES, (turn.asked, turn.answer), strict=True)
    ]
    return {"id": name, **system, **image, "conversations": said}


if __name__ == "__main__":
    sys.exit(main())
