"""Checks data of one's own, whatever the layout, and writes them as JSON lines: mmadapter check own PATH."""

from __future__ import annotations

import argparse
import re
import statistics
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from data_prep.checks import SPLITS, Check, Entry
from data_prep.command import options, run
from mmadapter.data.readers.items import Item, ReadItem
from mmadapter.data.readers.own import collected, of_split
from mmadapter.data.settings import LAYOUTS, ColumnNames, OwnSettings
from mmadapter.data.templates import scienceqa_options
from mmadapter.errors import InputError
from mmadapter.settings import with_overrides


def main(arguments: list[str] | None = None) -> int:
    """The command line; see `run` for the exit codes. The path may stand without --root."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-"):
        words.insert(0, "--root")
    parser = options("own", "Checks a file or folder of your own data.", "the file or folder (PATH alone is the same)")
    parser.add_argument("--images", type=Path, help="folder that the pictures' names start at (default: beside them)")
    parser.add_argument("--layout", choices=("auto", *LAYOUTS), default="auto", help="default: seen from the content")
    parser.add_argument(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="ROLE=NAME",
        help="names of fields: question=Frage answer=Antwort",
    )
    parser.add_argument(
        "--ignore", nargs="+", action="extend", default=[], metavar="FIELD", help="fields to go without"
    )
    parser.add_argument("--val-fraction", type=float, default=0.1, help="of what has no val of its own (default 0.1)")
    parser.add_argument("--val-size", type=int, default=200, help="items in val, at most (default 200)")
    return run(parser, words, read)


def read(settings: argparse.Namespace) -> Check:
    """The usable items of all splits, as the reader `own` makes them, and what is wrong with the others."""
    place: Path = settings.root
    if not place.exists():
        raise InputError(f"{place}: no such file or folder. Check the path.")
    images = None if settings.images is None else str(settings.images)
    columns = with_overrides(ColumnNames(), settings.columns, "--columns")
    try:
        data = collected(place, images, settings.layout, columns, settings.ignore, settings.pictures_anywhere)
    except InputError as error:
        raise InputError(_with_options(str(error))) from error
    data.defects.first = {reason: list(map(_with_options, said)) for reason, said in data.defects.first.items()}
    root = settings.images or (place if place.is_dir() else place.parent)
    check = Check(data.layout.line, root, data.files, data.defects)
    check.notes += data.notices
    if not data.items:
        check.refusals = ["no item can be used"]
        return check

    own = OwnSettings(path=str(place), val_size=settings.val_size, val_fraction=settings.val_fraction)
    given = {one.split or "train" for one in data.items}
    for split in SPLITS:
        if split in given or (split == "val" and "train" in given):
            try:
                items = of_split(data, replace(own, split=split))
            except InputError as error:  # too few to be split
                check.refusals = [str(error)]
                items = data.items if split == "train" else []
            pictures = [None if one.item.image is None else data.find(one, one.item.image) for one in items]
            check.splits[split] = [
                Entry(one.where, _line(one), picture, said=one.item.key)
                for one, picture in zip(items, pictures, strict=True)
            ]
    said = Counter(one.item.whole for one in data.items)
    if repeated := said.total() - len(said):
        check.repetitions.append(f"repeated items, word for word: {repeated:,}")
    sizes = [sum(len(turn.asked + turn.context + (turn.answer or "")) for turn in one.item.turns) for one in data.items]
    longest = max(range(len(sizes)), key=sizes.__getitem__)
    check.facts["characters of an item, median"] = int(statistics.median(sizes))
    check.facts[f"longest ({data.items[longest].where})"] = sizes[longest]
    return check


def _with_options(message: str) -> str:
    """A reader's message with the settings that it says to set as options of this command."""
    message = re.sub(r"\bcolumns\.(\w+)=", r"--columns \1=", message)
    message = re.sub(r"\bignore=\[(\w+)\]", r"--ignore \1", message)
    return re.sub(r"\blayout=", "--layout ", message).replace("path=FILE", "mmadapter check own FILE")


def _line(one: ReadItem) -> dict[str, Any]:
    """The item in a layout that the reader `own` reads again to the same text, without the picture's mark."""
    item: Item = one.item
    *earlier, last = item.turns
    image = {} if item.image is None else {"image": item.image}
    system = {} if item.system is None else {"system": item.system}
    context = {} if not last.context else {"context": last.context}
    history = {"history": [[turn.asked, turn.answer] for turn in earlier]} if earlier else {}
    if item.choices:
        asked = last.asked.removesuffix(f"\nOptions: {scienceqa_options(item.choices)}")
        told = {"question": asked, "choices": list(item.choices), "answer": item.choice}
        return {"id": one.id, **told, **context, **system, **image, **history}
    if item.answers and item.is_caption:
        return {"id": one.id, **image, "caption": list(item.answers)}
    if item.answers:
        told = {"question": last.asked, "answer": list(item.answers)}
        return {"id": one.id, **told, **context, **system, **image, **history}
    told = {"instruction": last.asked, "input": last.context, "output": last.answer}
    return {"id": one.id, **told, **history, **system, **image}


if __name__ == "__main__":
    sys.exit(main())
