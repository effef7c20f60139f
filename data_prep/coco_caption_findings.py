"""What is found in caption files and among their pictures: losses by reason, and every caption accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.output_folder import path_below
from data_prep.picture_check import decode_pictures
from mmadapter.data.readers.captions import Captioned, CaptionFiles
from mmadapter.data.readers.coco import REAL_SIZES
from mmadapter.data.readers.coco_layouts import is_coco_name
from mmadapter.data.readers.defects import Defects
from mmadapter.vision.packed_images import picture_exists

TWO_SPLITS = "pictures in two splits"
ABSENT = "pictures that are missing"
UNREADABLE = "pictures that cannot be read"
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")


@dataclass
class Split:
    """One split as it was read (all of it), and what is kept of it."""

    pictures: int
    captions: int
    kept: list[Captioned]
    dropped: Counter[str] = field(default_factory=Counter)
    """pictures by reason"""

    @property
    def captions_kept(self) -> int:
        return sum(len(picture.captions) for picture in self.kept)


@dataclass
class Findings:
    """Caption files with what is wrong with them; `settle` decides what that means."""

    found: CaptionFiles
    splits: dict[str, Split]
    defects: Defects
    """those of the files, and those of pictures"""
    beyond_limit: int = 0
    """captions that --limit left out"""
    decoded: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def root(self) -> Path:
        """The folder that pictures are named below."""
        return self.found.folders.root

    def drop(self, reason: str, bad: Mapping[tuple[str, int | str], str]) -> None:
        """Takes pictures out, by (split, image id), each with what is wrong."""
        for name, split in self.splits.items():
            kept = []
            for picture in split.kept:
                if (what := bad.get((name, picture.image_id))) is None:
                    kept.append(picture)
                else:
                    split.dropped[reason] += 1
                    self.defects.add(reason, what, len(picture.captions))
            split.kept = kept

    def settle(self, skip_bad: bool) -> None:
        """Turns defects into failures, or into losses that were asked for; a caption that nothing explains fails."""
        lines = [self.defects.line(reason) for reason in self.defects.counts]
        if skip_bad:
            self.notes = [f"{line} (left out)" for line in lines] + self.notes
        else:
            self.failures += lines
        kept = sum(split.captions_kept for split in self.splits.values())
        explained = kept + self.defects.captions.total() + self.beyond_limit
        if explained != self.found.captions_read:
            self.failures.append(f"{self.found.captions_read - explained:,} captions are lost and nothing says why")


def examine(
    found: CaptionFiles, look_for_pictures: bool, decode: int | None, limit: int | None, workers: int
) -> Findings:
    """Finds all that is wrong; `decode` says how many pictures are decoded, None: all."""
    splits = {
        name: Split(len(pictures), sum(len(one.captions) for one in pictures), list(pictures))
        for name, pictures in sorted(found.splits.items(), key=_order)
    }
    findings = Findings(found, splits, found.defects)
    findings.notes += [f"{count:,} {what} are ignored" for what, count in found.ignored.items()]
    _note_sizes(findings)
    _find_leaks(findings)
    _apply_limit(findings, limit)
    _note_repeated(findings)
    if look_for_pictures:
        _find_bad_pictures(findings, decode, workers)
        _note_unnamed_files(findings)
    else:
        findings.notes.append("pictures were not looked for (--check none)")
    return findings


def _order(item: tuple[str, list[Captioned]]) -> tuple[int, str]:
    known = ("train", "val", "test")
    return (known.index(item[0]) if item[0] in known else len(known), item[0])


def _find_leaks(findings: Findings) -> None:
    """A picture, by id or by file, of two splits: what is scored stays, what is trained on goes."""
    bad: dict[tuple[str, int | str], str] = {}
    owner: dict[object, str] = {}
    for name in reversed(findings.splits):
        for picture in findings.splits[name].kept:
            for mark in (picture.image_id, picture.image):
                other = owner.setdefault(mark, name)
                if other != name:
                    bad[name, picture.image_id] = f"{picture.where} ({name}) is in {other}, too"
    findings.drop(TWO_SPLITS, bad)


def _apply_limit(findings: Findings, limit: int | None) -> None:
    if limit is None:
        return
    for split in findings.splits.values():
        findings.beyond_limit += sum(len(picture.captions) for picture in split.kept[limit:])
        split.kept = split.kept[:limit]
    findings.notes.append(f"{findings.beyond_limit:,} captions lie beyond the limit of {limit:,} pictures a split")


def _note_sizes(findings: Findings) -> None:
    got = {name: (split.pictures, split.captions) for name, split in findings.splits.items()}
    named = [picture for split in findings.splits.values() for picture in split.kept[:1]]
    wanted = {name: REAL_SIZES[name] for name in got if name in REAL_SIZES}
    if all(is_coco_name(picture.image.name) for picture in named) and got != wanted:
        sizes = ", ".join(f"{name} {pictures:,} ({captions:,})" for name, (pictures, captions) in REAL_SIZES.items())
        findings.notes.append(f"not COCO by Karpathy's splits, whose pictures (captions) are: {sizes}")


def _note_repeated(findings: Findings) -> None:
    repeated = [
        picture
        for split in findings.splits.values()
        for picture in split.kept
        if len({text for _, text in picture.captions}) < len(picture.captions)
    ]
    if repeated:
        first = "; ".join(picture.where for picture in repeated[:5])
        findings.notes.append(f"{len(repeated):,} pictures have the same caption twice (kept), the first: {first}")


def _find_bad_pictures(findings: Findings, decode: int | None, workers: int) -> None:
    there: dict[str, Path] = {}
    names: dict[tuple[str, int | str], str] = {}
    absent: dict[tuple[str, int | str], str] = {}
    for split, one in findings.splits.items():
        for picture in one.kept:
            name = path_below(picture.image, findings.root)
            if picture_exists(picture.image):
                there[name] = picture.image
                names[split, picture.image_id] = name
            else:
                absent[split, picture.image_id] = name
    findings.drop(ABSENT, absent)
    findings.decoded, bad = decode_pictures(there, decode, findings.root, workers)
    findings.drop(UNREADABLE, {key: bad[name] for key, name in names.items() if name in bad})


def _note_unnamed_files(findings: Findings) -> None:
    """Pictures beside the named ones that no entry names."""
    named = {picture.image for pictures in findings.found.splits.values() for picture in pictures}
    folders = {path.parent for path in named}
    unnamed = sum(
        name.lower().endswith(PICTURE_ENDINGS) and folder / name not in named
        for folder, files in findings.found.folders.listings()
        if folder in folders
        for name in files
    )
    if unnamed:
        findings.notes.append(f"{unnamed:,} pictures in these folders are named by no caption and are ignored")
