"""Where named pictures are, and what becomes of samples whose picture is absent; never a black one instead."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mmadapter.data.samples import Sample
from mmadapter.errors import InputError
from mmadapter.vision.packed_images import picture_exists

log = logging.getLogger(__name__)
MISSING_IMAGE = ("error", "skip", "no_image", "blank")  # "blank", the older word, means "no_image"
NAMED = 5


def check_missing_image(policy: str) -> None:
    """Raises InputError where `policy` is none of error, skip, no_image (or blank)."""
    if policy not in MISSING_IMAGE:
        raise InputError(f"missing_image is {policy!r}; allowed: {', '.join(MISSING_IMAGE)}.")


def settle_missing_images(samples: Sequence[Sample], policy: str, what: str) -> list[Sample]:
    """Applies `policy` to samples whose picture is not on the disk; "no_image" keeps them without one."""
    check_missing_image(policy)
    # Each picture is looked for once, however many captions it has.
    pictures = dict.fromkeys(sample.image for sample in samples if sample.image is not None)
    gone = {picture for picture in pictures if not picture_exists(picture)}
    absent = {place for place, sample in enumerate(samples) if sample.image in gone}
    if not absent:
        return list(samples)
    first = ", ".join([str(picture) for picture in pictures if picture in gone][:NAMED])
    count = f"{what}: {len(gone)} of {len(pictures)} pictures are missing, the first: {first}"
    if policy == "error":
        raise InputError(
            f"{count}. Fetch them, or set missing_image=skip (leave these items out), "
            "missing_image=no_image (keep them without a picture) or images=false (no pictures at all)."
        )
    if policy == "skip":
        log.warning("%s; these items are left out (missing_image=skip).", count)
        return [sample for place, sample in enumerate(samples) if place not in absent]
    log.warning("%s; these items are kept without a picture (missing_image=no_image).", count)
    return [replace(sample, image=None) if place in absent else sample for place, sample in enumerate(samples)]


class ImageFolders:
    """Finds pictures by the names that caption files give them; each folder is listed once, not asked per picture."""

    COCO = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12}\.jpg)")

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._names: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> Path:
        """The picture as its file says, below `images`, flat, or in COCO's other layouts; as it says if nowhere."""
        for folder, file in self._places(*os.path.split(name)):
            if file in self._listing(folder):
                return self.root / folder / file
        return self.root / name

    def listings(self) -> Iterator[tuple[Path, frozenset[str]]]:
        """The folders that were looked into and are there, with the names of their files."""
        yield from ((self.root / folder, names) for folder, names in self._names.items() if names)

    def _places(self, folder: str, file: str) -> Iterator[tuple[str, str]]:
        yield folder, file
        yield os.path.join("images", folder), file
        yield "", file
        yield "images", file
        if match := self.COCO.fullmatch(file):
            for above in ("", "images/"):
                for year in ("train", "val"):
                    yield f"{above}{year}2014", f"COCO_{year}2014_{match[1]}"
                    yield f"{above}{year}2017", match[1]

    def _listing(self, folder: str) -> frozenset[str]:
        names = self._names.get(folder)
        if names is None:
            try:
                with os.scandir(self.root / folder) as entries:
                    names = frozenset(entry.name for entry in entries if entry.is_file())
            except OSError:
                names = frozenset()
            self._names[folder] = names
        return names
