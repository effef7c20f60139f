"""Alpaca-style instructions: a JSON list (or JSON lines) of instruction, input, output."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

from mmadapter.data.readers.json_file import read_json, read_json_lines
from mmadapter.data.samples import Sample
from mmadapter.data.templates import alpaca_segments
from mmadapter.errors import InputError

log = logging.getLogger(__name__)
SPLITS = ("train", "val", "all")
DEFAULT_NAME = "alpaca_data.json"
FIELDS = "instruction, input, output"


def read_alpaca(
    path: Path,
    *,
    training: bool,
    split: str = "train",
    val_size: int = 200,
    source: str = "alpaca",
    limit: int | None = None,
) -> list[Sample]:
    """The items of one split, in the file's order; items with an empty output are left out and counted.

    Deviates: V1's validation items are the first 200 of the training items. Here `val` holds the `val_size` items (at
    most a tenth) whose (instruction, input) has the smallest hash, and `train` all others: the same ones however the
    file is ordered. Items with equal (instruction, input) stand on the same side.
    """
    if split not in SPLITS:
        raise InputError(f"The split of source {source} is {split!r}; allowed: {', '.join(SPLITS)}.")
    file = _file(Path(path))
    items = _checked_items(file)
    filled = [(number, item) for number, item in items if item["output"].strip()]
    if len(filled) < len(items):
        dropped = len(items) - len(filled)
        log.warning("%s: %d of %d items have an empty output and are left out.", file, dropped, len(items))
    if split != "all":
        held_out = _held_out([item for _, item in filled], val_size)
        filled = [(number, item) for number, item in filled if (_hash(item) in held_out) == (split == "val")]
    if not filled:
        raise InputError(f"{file}: split {split!r} holds no item; the file has {len(items)} items.")
    return [_sample(file, number, item, training, source) for number, item in filled[:limit]]


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = [path / DEFAULT_NAME] if (path / DEFAULT_NAME).is_file() else sorted(path.glob("*.json"))
    if len(found) != 1:
        raise InputError(f"{path}: expected {DEFAULT_NAME} or one *.json there, found {len(found)}. Name the file.")
    return found[0]


def _checked_items(file: Path) -> list[tuple[int, dict[str, str]]]:
    items = read_json_lines(file) if file.suffix == ".jsonl" else read_json(file)
    if not isinstance(items, list):
        raise InputError(f"{file}: expected a list of items with {FIELDS}, got {type(items).__name__}.")
    return [(number, _checked_item(file, number, item)) for number, item in enumerate(items)]


def _checked_item(file: Path, number: int, item: Any) -> dict[str, str]:
    if not isinstance(item, dict):
        raise InputError(f"{file}, item {number}: expected an object with {FIELDS}, got {type(item).__name__}.")
    found = {"instruction": item.get("instruction"), "input": item.get("input", ""), "output": item.get("output")}
    for name, value in found.items():
        if not isinstance(value, str):
            got = "missing" if name not in item else f"{type(value).__name__} {str(value)[:60]!r}"
            raise InputError(f"{file}, item {number}: `{name}` is {got}; it must be text.")
    if not found["instruction"].strip():
        raise InputError(f"{file}, item {number}: `instruction` is empty. Give it a text or take the item out.")
    return found


def _hash(item: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps([item["instruction"], item["input"]]).encode()).hexdigest()


def _held_out(items: list[dict[str, str]], val_size: int) -> set[str]:
    hashes = sorted({_hash(item) for item in items})
    return set(hashes[: min(val_size, max(len(hashes) // 10, 1))])


def _sample(file: Path, number: int, item: dict[str, str], training: bool, source: str) -> Sample:
    answer = item["output"] if training else None
    return Sample(
        id=str(number),
        source=source,
        segments=alpaca_segments(item["instruction"], item["input"], answer),
        image=None,
        where=f"{file.name}, item {number}",
        meta={**item, "references": [item["output"]]},
    )
