"""Checks instruction files and dialogs and writes them as JSON lines: python -m data_prep.instruct."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_prep.checks import Check, Entry, Split
from data_prep.command import options, run
from mmadapter.data.readers.instructions import (
    ROLES,
    WEAK,
    ReadItem,
    dialog_item,
    instruction_item,
    parsed_items,
    places_of_split,
)
from mmadapter.data.readers.json_file import read_items
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.errors import InputError

KINDS = ("alpaca", "gpt4llm", "llava", "sharegpt")
SPLITS = ("train", "val", "test")
VAL_SIZE = 200
NO_INPUT = re.compile(r"\W*no\s*input\W*", re.IGNORECASE)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where the data is sound (or every loss was asked for), 1 where it is not, 2 where it cannot be read."""
    about = "Checks Alpaca, GPT-4-LLM, LLaVA-Instruct and ShareGPT files."
    parser = options("instruct", about, "a file, or a folder with one (or train, val, test)")
    parser.add_argument("--kind", choices=("auto", *KINDS), default="auto", help="the layout (default: by the items)")
    parser.add_argument("--images", type=Path, help="folder that the pictures' names start at (default: the root)")
    parser.add_argument("--strict", action="store_true", help="repeated items and overlaps of splits are defects, too")
    parser.add_argument("--val-size", type=int, default=VAL_SIZE, help=f"items kept for val (default {VAL_SIZE})")
    return run(parser, arguments, examine, _line)


def examine(settings: argparse.Namespace) -> Check:
    """Reads the files under the root and finds all that is wrong with them."""
    root: Path = settings.root
    files = _files(root)
    raw = {name: read_items(file)[: settings.limit] for name, file in files.items()}
    kind = _kind(settings.kind, next(iter(raw.values())), root)
    folders = ImageFolders(settings.images or (root if root.is_dir() else root.parent))
    what = f"{kind}: {', '.join(str(file) for file in files.values())}"
    check = Check(what, folders.root, list(files.values()), weak=WEAK)

    # The items of every split; one file becomes train and val, and what is left out of it is counted with train.
    parse = dialog_item if kind in ("llava", "sharegpt") else instruction_item
    for name, file in files.items():
        found = parsed_items(file, raw[name], parse)
        check.defects.update(found.defects)
        entries = [_entry(one, folders) for one in found.items]
        if name != "all":
            check.splits[name] = Split(entries, Counter(found.defects.counts))
            continue
        keys = [one.item.key for one in found.items]
        for side in ("train", "val"):
            places = places_of_split(keys, side, settings.val_size) if keys else []
            check.splits[side] = Split([entries[place] for place in places])
        check.splits["train"].dropped = Counter(found.defects.counts)
    items = [one.item.item for split in check.splits.values() for one in split.entries]
    if no_input := sum(bool(NO_INPUT.fullmatch(item.context)) for item in items):
        check.notes.append(f'inputs that say "no input": {no_input:,} (kept as they are)')
    if open_ends := sum(item.open_end for item in items):
        check.notes.append(f"dialogs that end with a question: {open_ends:,} (that last turn is left out)")

    # Items that stand twice word for word, and items of val and test whose question or picture train has, too.
    repetitions = check.failures if settings.strict else check.notes
    said = Counter((item.turns, item.context, item.image) for item in items)
    if repeated := sum(count - 1 for count in said.values()):
        repetitions.append(f"repeated items, word for word: {repeated:,}")
    for name in ("val", "test"):
        if overlap := check.repeated_in_train(name, lambda one: one.item.item.key):
            repetitions.append(f"items of {name} whose question or picture is in train, too: {overlap:,}")

    check.find_bad_pictures(settings.check, settings.workers)
    check.note_unnamed_pictures(folders.listings())
    check.settle(settings.on_bad == "skip")
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


def _kind(kind: str, items: list[Any], root: Path) -> str:
    if kind != "auto":
        return kind
    objects = [item for item in items if isinstance(item, dict)]
    if any("conversations" in item for item in objects):
        return "llava" if any("image" in item for item in objects) else "sharegpt"
    if any("instruction" in item for item in objects):
        return "alpaca"
    raise InputError(
        f"{root}: no item has `conversations` or `instruction`, so the layout is not known. Say it with --kind "
        f"({', '.join(KINDS)})."
    )


def _entry(one: ReadItem, folders: ImageFolders) -> Entry:
    image = None if one.item.image is None else folders.find(one.item.image)
    return Entry((one.file, one.number), one.where, one, image)


def _line(check: Check, entry: Entry) -> Mapping[str, Any]:
    """The item in its own layout, without the picture's mark; the readers read it again."""
    item = entry.item.item
    if check.what.startswith(("alpaca: ", "gpt4llm: ")):
        ((asked, answer),) = item.turns
        return {"instruction": asked, "input": item.context, "output": answer}
    said = [{"from": role, "value": text} for turn in item.turns for role, text in zip(ROLES, turn, strict=True)]
    image = {} if item.image is None else {"image": item.image}
    return {"id": entry.item.id, **image, "conversations": said}


if __name__ == "__main__":
    sys.exit(main())
