"""What readers cannot see, as they read one split: leaks and repetitions between splits, pictures that do not decode.

A `Check` holds what a reader found in the files of all splits, adds what is wrong between and behind the items, and
decides what of it is a defect, what is left out and what is only noted.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmadapter.data.readers.defects import EXAMPLES, Defects
from mmadapter.errors import InputError
from mmadapter.vision.images import read_image
from mmadapter.vision.packed_images import picture_exists

ABSENT, UNREADABLE, TWO_SPLITS = "missing pictures", "unreadable pictures", "items in two splits"
DECODED_BY_SAMPLE = 200
DECODED: dict[str, int | None] = {"none": 0, "sample": DECODED_BY_SAMPLE, "all": None}
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclass
class Entry:
    """One item of a split."""

    key: Hashable  # the item in all splits in which it stands
    where: str  # file and place
    item: Any  # as the reader has it; None where a split names what is not there
    image: Path | None = None
    captions: int = 0


@dataclass
class Split:
    """One split's items as they were read, what is kept of them, and what was left out by reason."""

    entries: list[Entry]
    dropped: Counter[str] = field(default_factory=Counter)  # also what the reader could not use
    kept: list[Entry] = field(default_factory=list)


@dataclass
class Check:
    """Files of data with what is wrong with them; `settle` decides what that means."""

    what: str  # of which files, for the first line of the summary
    root: Path  # pictures are named below it
    files: list[Path]
    splits: dict[str, Split] = field(default_factory=dict)
    defects: Defects = field(default_factory=Defects)  # items that the reader could not use
    weak: Collection[str] = ()  # reasons among these for which items are left out whatever is asked for
    bad: dict[str, dict[Hashable, str]] = field(default_factory=dict)  # reason -> key of the item -> what
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, int] = field(default_factory=dict)  # further counts, for summary and manifest

    def add(self, reason: str, key: Hashable, what: str) -> None:
        """Notes what is wrong with one item; the first finding of a reason stands."""
        self.bad.setdefault(reason, {}).setdefault(key, what)

    def sound(self, split: str) -> Iterator[Entry]:
        """The entries of a split with which nothing is wrong so far."""
        wrong = {key for found in self.bad.values() for key in found}
        return (one for one in self.splits[split].entries if one.key not in wrong)

    def find_in_two_splits(self, splits: Collection[str], marks: Callable[[Entry], Iterable[Hashable]]) -> None:
        """Items of which one of the marks stands in a later split, too: what is scored stays, what is learned goes."""
        owner: dict[Hashable, str] = {}
        for name in reversed([name for name in self.splits if name in splits]):
            for one in self.splits[name].entries:
                for mark in marks(one):
                    other = owner.setdefault(mark, name)
                    if other != name:
                        self.add(TWO_SPLITS, one.key, f"{one.where} ({name}) is in {other}, too")

    def repeated_in_train(self, split: str, mark: Callable[[Entry], Hashable | None]) -> int:
        """How many items of `split` have the mark of an item in train."""
        if not {"train", split} <= self.splits.keys():
            return 0
        train = {mark(one) for one in self.splits["train"].entries} - {None}
        return sum(mark(one) in train for one in self.splits[split].entries)

    def find_bad_pictures(self, decode: str, workers: int) -> None:
        """Pictures that are absent, and of those that are there the unreadable ones; `decode` is a key of DECODED.

        Which pictures make a sample follows from their names alone, so it is the same one each time.
        """
        pictures: dict[str, Path] = {}
        looked_for: dict[Path, bool] = {}
        named: list[tuple[Entry, str]] = []
        for one in [one for name in self.splits for one in self.sound(name)]:
            if one.image is None:
                continue
            name = path_below(one.image, self.root)
            if one.image not in looked_for:
                looked_for[one.image] = picture_exists(one.image)
            if looked_for[one.image]:
                pictures[name] = one.image
                named.append((one, name))
            else:
                self.add(ABSENT, one.key, f"{one.where}: {name}")
        chosen = sorted(pictures, key=lambda name: hashlib.sha256(name.encode()).digest())[: DECODED[decode]]
        self.facts["pictures decoded"] = len(chosen)

        def defect(name: str) -> str | None:
            try:
                read_image(pictures[name])
            except InputError as error:
                return str(error).replace(str(pictures[name]), name)
            return None

        with ThreadPoolExecutor(workers) as pool:
            told = dict(zip(chosen, _with_progress(pool.map(defect, chosen), len(chosen)), strict=True))
        for one, name in named:
            if found := told.get(name):
                self.add(UNREADABLE, one.key, f"{one.where}: {found}")

    def note_unnamed_pictures(self, listings: Iterable[tuple[Path, Collection[str]]]) -> None:
        """Pictures that lie beside the named ones and that no item names."""
        named = {one.image for split in self.splits.values() for one in split.entries if one.image is not None}
        folders = {path.parent for path in named}
        unnamed = sum(
            name.lower().endswith(PICTURE_ENDINGS) and folder / name not in named
            for folder, names in listings
            if folder in folders
            for name in names
        )
        if unnamed:
            self.notes.append(f"pictures in these folders that no item names: {unnamed:,} (ignored)")

    def settle(self, skip_bad: bool, absent: str | None = None) -> None:
        """Turns what was found into failures, or into losses that were asked for, and fills every split's `kept`.

        `absent` says what becomes of items without their picture where that is not `skip_bad`'s: error, skip, no_image.
        """
        dropped: dict[Hashable, str] = {}
        losses: list[str] = []
        for reason in self.defects.counts:
            skipped = skip_bad or reason in self.weak
            (losses if skipped else self.failures).append(self.defects.line(reason) + " (left out)" * skipped)
        for reason, found in self.bad.items():
            line = f"{reason}: {len(found):,}, the first: {'; '.join(list(found.values())[:EXAMPLES])}"
            if reason == ABSENT and absent == "no_image":
                losses.append(f"{line} (kept without a picture)")
            elif absent == "skip" if reason == ABSENT and absent is not None else skip_bad:
                dropped |= {key: reason for key in found if key not in dropped}
                losses.append(f"{line} (left out)")
            else:
                self.failures.append(line)
        self.notes = losses + self.notes
        for split in self.splits.values():
            split.kept = [one for one in split.entries if one.key not in dropped]
            split.dropped.update(dropped[one.key] for one in split.entries if one.key in dropped)

    def counts(self, split: str) -> dict[str, Any]:
        """A split's items as read, with a picture, left out by reason and kept."""
        one, absent = self.splits[split], self.bad.get(ABSENT, {})
        lost_by_reader = one.dropped.total() + len(one.kept) - len(one.entries)
        counts: dict[str, Any] = {
            "items": len(one.entries) + lost_by_reader,
            "with_image": sum(entry.image is not None for entry in one.entries),
            "image_absent": sum(entry.key in absent for entry in one.entries),
            "dropped": dict(sorted(one.dropped.items())),
        }
        if any(entry.captions for entry in one.entries):
            counts["captions"] = sum(entry.captions for entry in one.kept)
        return {**counts, "kept": len(one.kept)}

    def summary(self) -> str:
        """One screen: a line a split, then defects and notes with counts and the first examples."""
        lines = [self.what]
        for number, name in enumerate(self.splits):
            counts = self.counts(name)
            if number == 0:
                lines.append(f"{'split':<10}" + "".join(f"{column:>14}" for column in counts))
            cells = (sum(count.values()) if isinstance(count, dict) else count for count in counts.values())
            lines.append(f"{name:<10}" + "".join(f"{cell:>14,}" for cell in cells))
        lines.append("; ".join(f"{fact}: {count:,}" for fact, count in self.facts.items()))
        lines += [f"defect: {line}" for line in self.failures]
        lines += [f"note:   {line}" for line in self.notes]
        verdict = "Sound, but for the notes." if self.notes else "Sound."
        lines.append("NOT SOUND: fix the defects, or leave bad items out (see --help)." if self.failures else verdict)
        return "\n".join(lines)


def path_below(path: Path, root: Path) -> str:
    """`path` relative to `root` with slashes; as it is where it lies elsewhere."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def _with_progress(found: Iterable[str | None], total: int) -> Iterable[str | None]:
    if not sys.stderr.isatty():
        return found
    from rich.console import Console  # only where somebody watches
    from rich.progress import track

    return track(found, "decoding pictures", total, console=Console(stderr=True), transient=True)
