"""What is found in instruction files: defects and losses by reason, repeated items, pictures, the splits."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_prep.picture_check import decode_pictures
from mmadapter.data.readers.held_out import places_of_split
from mmadapter.data.readers.instruction_files import picture_file, read_raw_items
from mmadapter.data.readers.instruction_items import Dropped, Item, dialog_item, instruction_item
from mmadapter.errors import InputError

KINDS = ("alpaca", "gpt4llm", "llava", "sharegpt")
SPLITS = ("train", "val", "test")
EXAMPLES = 5
BAD_ITEM, ABSENT, BAD_IMAGE = "bad item", "image missing", "bad image"
NO_INPUT = re.compile(r"\W*no\s*input\W*", re.IGNORECASE)
PICTURES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass
class Entry:
    """One usable item and where it stands."""

    where: str
    id: Any
    item: Item
    picture: Path | None = None


@dataclass
class Split:
    """One split's items: as read, kept after `settle`, and what was left out by reason."""

    entries: list[Entry]
    items: int = 0
    kept: list[Entry] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class Findings:
    """Instruction files' content with what is wrong with it; `settle` decides what that means."""

    kind: str
    inputs: list[Path]
    splits: dict[str, Split] = field(default_factory=dict)
    defects: dict[str, dict[str, str]] = field(default_factory=dict)
    """reason -> place of the item -> what"""
    left_out: Counter[str] = field(default_factory=Counter)
    """weaknesses of public files, always left out"""
    repeated: list[str] = field(default_factory=list)
    """repetitions and overlaps: notes, or failures where that is asked for"""
    decoded: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, reason: str, where: str, what: str) -> None:
        """Notes a defect of one item."""
        self.defects.setdefault(reason, {}).setdefault(where, what)

    def settle(self, skip_bad: bool, strict: bool) -> None:
        """Splits what was found into failures and explained losses, and fills every split's `kept`."""
        dropped: dict[str, str] = {}
        for reason, items in self.defects.items():
            line = f"{reason}: {len(items):,}, the first: " + "; ".join(list(items.values())[:EXAMPLES])
            (self.notes if skip_bad else self.failures).append(f"{line} (left out)" if skip_bad else line)
            dropped |= {where: reason for where in items if where not in dropped}
        self.notes += [f"{reason}: {count:,} (left out)" for reason, count in sorted(self.left_out.items())]
        (self.failures if strict else self.notes).extend(self.repeated)
        for split in self.splits.values():
            split.kept = [entry for entry in split.entries if entry.where not in dropped]
            split.dropped.update(dropped[entry.where] for entry in split.entries if entry.where in dropped)


def examine(
    root: Path, kind: str, images: Path | None, decode: int | None, limit: int | None, workers: int, val_size: int
) -> Findings:
    """Reads the files under `root` and finds all defects; `decode`: how many pictures are decoded, None: all."""
    files = _files(root)
    raw = {name: read_raw_items(file)[:limit] for name, file in files.items()}
    findings = Findings(_kind(kind, next(iter(raw.values())), root), list(files.values()))
    for name, items in raw.items():
        findings.splits[name] = _read_split(findings, files[name], items)
    if list(files) == ["all"]:
        _hold_out(findings, val_size)
    _note_weak_texts(findings)
    _find_repeated(findings)
    images = images or (root if root.is_dir() else root.parent)
    _find_pictures(findings, images)
    _decode(findings, images, decode, workers)
    return findings


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


def _read_split(findings: Findings, file: Path, items: list[Any]) -> Split:
    parse = dialog_item if findings.kind in ("llava", "sharegpt") else instruction_item
    split = Split([], len(items))
    for number, raw in enumerate(items):
        where = f"{file.name}, item {number}"
        try:
            item = parse(raw)
        except Dropped as reason:
            findings.left_out[str(reason)] += 1
            split.dropped[str(reason)] += 1
        except InputError as error:
            findings.add(BAD_ITEM, where, f"{where}: {error}")
            split.dropped[BAD_ITEM] += 1
        else:
            split.entries.append(Entry(where, raw.get("id", number), item))
    return split


def _hold_out(findings: Findings, val_size: int) -> None:
    """One file becomes train and val; what is left out of it is counted with train."""
    whole = findings.splits.pop("all")
    keys = [entry.item.key for entry in whole.entries]
    for name in ("train", "val"):
        entries = [whole.entries[place] for place in places_of_split(keys, name, val_size, "--root")] if keys else []
        findings.splits[name] = Split(entries, len(entries))
    findings.splits["train"].items += whole.dropped.total()
    findings.splits["train"].dropped = whole.dropped


def _entries(findings: Findings) -> Iterator[Entry]:
    return (entry for split in findings.splits.values() for entry in split.entries)


def _note_weak_texts(findings: Findings) -> None:
    if no_input := sum(bool(NO_INPUT.fullmatch(entry.item.context)) for entry in _entries(findings)):
        findings.notes.append(f'inputs that say "no input": {no_input:,} (kept as they are)')
    if open_ends := sum(entry.item.open_end for entry in _entries(findings)):
        findings.notes.append(f"dialogs that end with a question: {open_ends:,} (that last turn is left out)")


def _find_repeated(findings: Findings) -> None:
    """Items that stand twice word for word, and items of val and test whose question or picture train has, too."""
    items = Counter((entry.item.turns, entry.item.context, entry.item.image) for entry in _entries(findings))
    if repeated := sum(count - 1 for count in items.values()):
        findings.repeated.append(f"repeated items, word for word: {repeated:,}")
    train = {entry.item.key for entry in findings.splits["train"].entries}
    for name in ("val", "test"):
        here = findings.splits[name].entries if name in findings.splits else []
        if overlap := sum(entry.item.key in train for entry in here):
            findings.repeated.append(f"items of {name} whose question or picture is in train, too: {overlap:,}")


def _find_pictures(findings: Findings, images: Path) -> None:
    named: dict[str, Path] = {}
    for entry in _entries(findings):
        if (name := entry.item.image) is not None:
            named[name] = entry.picture = named.get(name) or picture_file(images, name)
    absent = {path for path in named.values() if not path.is_file()}
    for entry in _entries(findings):
        if entry.picture in absent:
            findings.add(ABSENT, entry.where, f"{entry.where}: {entry.item.image}")
    if named:
        used = {os.fspath(path) for path in named.values()}
        folders = os.walk(images)
        there = (os.path.join(folder, name) for folder, _, names in folders for name in names)
        if ignored := sum(path.lower().endswith(PICTURES) and path not in used for path in there):
            findings.notes.append(f"pictures that no item names: {ignored:,} (ignored)")


def _decode(findings: Findings, images: Path, decode: int | None, workers: int) -> None:
    entries: dict[str, list[Entry]] = {}
    pictures: dict[str, Path] = {}
    for entry in _entries(findings):
        name = entry.item.image
        if name is not None and entry.picture is not None and entry.where not in findings.defects.get(ABSENT, {}):
            entries.setdefault(name, []).append(entry)
            pictures[name] = entry.picture
    findings.decoded, bad = decode_pictures(pictures, decode, images, workers)
    for name, defect in bad.items():
        for entry in entries[name]:
            findings.add(BAD_IMAGE, entry.where, f"{entry.where}: {defect}")
