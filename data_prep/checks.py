"""What a reader of one split cannot see: leaks and repetitions between splits, and pictures that do not decode."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from mmadapter.data.readers.defects import Defects
from mmadapter.errors import InputError
from mmadapter.vision.images import read_image
from mmadapter.vision.packed_images import picture_exists

SPLITS = ("train", "val", "test")  # what is learned first, what is scored last
ABSENT, UNREADABLE, TWO_SPLITS = "missing pictures", "unreadable pictures", "items in two splits"
DECODED_BY_SAMPLE = 200
DECODED: dict[str, int | None] = {"none": 0, "sample": DECODED_BY_SAMPLE, "all": None}


@dataclass
class Entry:
    """One usable item of a split: the JSON line that is written of it, and what is compared with other items."""

    where: str
    """file and place"""
    line: dict[str, Any]
    image: Path | None = None
    marks: tuple[Hashable, ...] = ()
    """what must not stand in another split, too"""
    said: Hashable = None
    """what an item of val or test should not have in common with one of train"""


@dataclass
class Check:
    """The usable items of all splits, and what is wrong; a check between items takes out those that it finds."""

    what: str
    """of which files, for the first line of the summary"""
    root: Path
    """pictures are named below it"""
    files: list[Path]
    defects: Defects = field(default_factory=Defects)
    splits: dict[str, list[Entry]] = field(default_factory=dict)
    left_out: dict[str, Counter[str]] = field(default_factory=dict)
    """by split: how many items were taken out of it, by reason"""
    refusals: list[str] = field(default_factory=list)
    """why training refuses these files as a whole"""
    repetitions: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)
    """further counts, for summary and manifest"""

    def leave_out(self, reason: str, wrong: Callable[[str, Entry], str | None]) -> None:
        """Takes out what `wrong(split, entry)` says something of; the same item in several splits is counted once."""
        told: set[str] = set()
        for name, entries in self.splits.items():
            kept = []
            for one in entries:
                if (found := wrong(name, one)) is None:
                    kept.append(one)
                    continue
                self.left_out.setdefault(name, Counter())[reason] += 1
                if found not in told:
                    told.add(found)
                    self.defects.add(reason, found, len(one.line.get("captions", ())))
            self.splits[name] = kept

    def compare_splits(self) -> None:
        """Items of which a mark stands in a later split, too: what is scored stays, what is learned goes."""
        owner: dict[Hashable, str] = {}
        for name in reversed(self.splits):
            for one in self.splits[name]:
                for mark in one.marks:
                    owner.setdefault(mark, name)

        def leak(name: str, one: Entry) -> str | None:
            other = next((owner[mark] for mark in one.marks if owner[mark] != name), None)
            return None if other is None else f"{one.where} ({name}) is in {other}, too"

        self.leave_out(TWO_SPLITS, leak)
        learned = {one.said for one in self.splits.get("train", ())} - {None}
        for name in ("val", "test"):
            if overlap := sum(one.said in learned for one in self.splits.get(name, ())):
                self.repetitions.append(f"items of {name} whose question or picture is in train, too: {overlap:,}")

    def look_at_pictures(self, decode: str, workers: int, keep_absent: bool = False) -> None:
        """Items whose picture is absent or, of those that are decoded (a key of DECODED), cannot be read.

        Which pictures make a sample follows from their names alone, so it is the same one each time.
        `keep_absent`: such items stay, without a picture.
        """
        if decode == "none":
            self.notes.append("pictures were not looked for (--check none)")
            return
        pictures = dict.fromkeys(one.image for entries in self.splits.values() for one in entries)
        names = {path: path_below(path, self.root) for path in pictures if path is not None}
        absent = {path for path in names if not picture_exists(path)}
        if keep_absent and absent:
            first = "; ".join([names[path] for path in names if path in absent][:5])
            self.notes.append(f"{ABSENT}: {len(absent):,}, the first: {first} (kept without a picture)")
            for one in (one for entries in self.splits.values() for one in entries if one.image in absent):
                one.image = one.line["image"] = None
        self.leave_out(ABSENT, lambda _, one: f"{one.where}: {names[one.image]}" if one.image in absent else None)

        there = sorted(names.keys() - absent, key=lambda path: hashlib.sha256(names[path].encode()).digest())
        chosen = there[: DECODED[decode]]
        self.facts["pictures decoded"] = len(chosen)

        def defect(path: Path) -> str | None:
            try:
                read_image(path)
            except InputError as error:
                return str(error).replace(str(path), names[path])
            return None

        with ThreadPoolExecutor(workers) as pool:
            found = track(
                pool.map(defect, chosen), "decoding pictures", len(chosen), console=Console(stderr=True),
                transient=True, disable=not sys.stderr.isatty(),
            )  # fmt: skip
            unreadable = {path: told for path, told in zip(chosen, found, strict=True) if told is not None}
        self.leave_out(
            UNREADABLE, lambda _, one: f"{one.where}: {unreadable[one.image]}" if one.image in unreadable else None
        )

    def counts(self, split: str) -> dict[str, Any]:
        """A split's items: how many were usable, how many of them are left out by reason and kept."""
        kept, left_out = self.splits[split], self.left_out.get(split, Counter())
        counts: dict[str, Any] = {
            "items": len(kept) + left_out.total(),
            "dropped": dict(sorted(left_out.items())),
            "kept": len(kept),
            "with_image": sum(one.image is not None for one in kept),
        }
        if any("captions" in one.line for one in kept):
            counts["captions"] = sum(len(one.line["captions"]) for one in kept)
        return counts

    def summary(self, failures: list[str], losses: list[str]) -> str:
        """One screen: a line a split, then defects and notes with counts and the first examples."""
        lines = [self.what]
        for number, name in enumerate(self.splits):
            counts = self.counts(name)
            if number == 0:
                lines.append(f"{'split':<10}" + "".join(f"{column:>14}" for column in counts))
            cells = (sum(count.values()) if isinstance(count, dict) else count for count in counts.values())
            lines.append(f"{name:<10}" + "".join(f"{cell:>14,}" for cell in cells))
        if self.facts:
            lines.append("; ".join(f"{fact}: {count:,}" for fact, count in self.facts.items()))
        lines += [f"defect: {line}" for line in failures]
        lines += [f"note:   {line}" for line in [*losses, *self.notes]]
        verdict = "Sound, but for the notes." if losses or self.notes else "Sound."
        lines.append("NOT SOUND: fix the defects, or leave bad items out (see --help)." if failures else verdict)
        return "\n".join(lines)


def path_below(path: Path, root: Path) -> str:
    """`path` relative to `root` with slashes; as it is where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
