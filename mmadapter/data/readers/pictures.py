"""Where named pictures are, and what becomes of samples whose picture is absent; never a black one instead."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from mmadapter.data.readers.defects import EXAMPLES
from mmadapter.data.samples import Sample
from mmadapter.errors import InputError
from mmadapter.vision.packed_images import picture_exists

log = logging.getLogger(__name__)
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
OUTSIDE = (
    "pictures outside of the data's folder, which a report would show to others (to read them: pictures_anywhere=true; "
    "to name their folder: root=FOLDER)"
)


def is_outside(name: str, roots: Sequence[Path]) -> bool:
    """Whether a picture's name in a file of data leads out of all of `roots`: an absolute path, or one with `..`.

    A name is judged as it is written. A link that lies below a root is followed: whoever made it could write there.
    """
    whole = [os.path.abspath(root) for root in roots]
    meant = [os.path.abspath(os.path.join(root, name)) for root in whole]
    return not any(os.path.commonpath([one, root]) == root for one in meant for root in whole)


def settle_missing_images(samples: Sequence[Sample], policy: str, what: str) -> list[Sample]:
    """Applies `policy` (error, skip or no_image: kept without one) to samples whose picture is not on the disk."""
    # Each picture is looked for once, however many captions it has.
    pictures = dict.fromkeys(sample.image for sample in samples if sample.image is not None)
    gone = {picture for picture in pictures if not picture_exists(picture)}
    if not gone:
        return list(samples)
    first = ", ".join([shortened_path(picture) for picture in pictures if picture in gone][:EXAMPLES])
    count = f"{what}: {len(gone)} of {len(pictures)} pictures are missing, the first: {first}"
    if policy == "error":
        raise InputError(
            f"{count}. Fetch them, or set missing_image=skip (leave these items out), "
            "missing_image=no_image (keep them without a picture) or images=false (no pictures at all)."
        )
    if policy == "skip":
        log.warning("%s; these items are left out (missing_image=skip).", count)
        return [sample for sample in samples if sample.image not in gone]
    log.warning("%s; these items are kept without a picture (missing_image=no_image).", count)
    return [replace(sample, image=None) if sample.image in gone else sample for sample in samples]


def shortened_path(path: Path) -> str:
    """A path in a message; of one that is longer than any file's name can be, both ends."""
    text = str(path)
    return text if len(text) <= 400 else f"{text[:200]}...{text[-100:]} ({len(text):,} letters)"


class ImageFolders:
    """Finds pictures by the names that files of data give them; each folder is listed once, not asked per picture."""

    COCO = re.compile(r"(?:COCO_(?:train|val)2014_)?(\d{12})\.jpg")

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._names: dict[str, frozenset[str]] = {}

    def find(self, name: str) -> Path:
        """The picture as its file says, below `images`, flat, or in COCO's other layouts; as it says if nowhere."""
        if ".." in name:  # as it is written: `train2017/../a.jpg` is a.jpg, wherever a link train2017 leads
            name = os.path.normpath(name)
        for folder, file in self._places(*os.path.split(name)):
            if file in self._listing(folder):
                return self.root / folder / file
        return self.root / name

    def _places(self, folder: str, file: str) -> Iterator[tuple[str, str]]:
        yield folder, file
        yield os.path.join("images", folder), file
        yield "", file
        yield "images", file
        if match := self.COCO.fullmatch(file):
            for above in ("", "images/"):
                for year in ("train", "val"):
                    yield f"{above}{year}2014", f"COCO_{year}2014_{match[1]}.jpg"
                    yield f"{above}{year}2017", f"{match[1]}.jpg"
        for coco in ("train2017", "train2014"):  # LLaVA-Instruct names COCO's pictures without their folder
            yield os.path.join(coco, folder), file

    def _listing(self, folder: str) -> frozenset[str]:
        names = self._names.get(folder)
        if names is None:
            try:
                with os.scandir(self.root / folder) as entries:
                    names = frozenset(entry.name for entry in entries if entry.is_file())
            except (OSError, ValueError):  # ValueError: a name with a NUL
                names = frozenset()
            self._names[folder] = names
        return names


def with_attached_images(samples: Sequence[Sample], folder: Path) -> list[Sample]:
    """The samples, each one that has no picture with one from `folder` (and the folders in it): does its answer change?

    Which one depends on the sample's id and the files' names alone, so every model is shown the same. Raises
    InputError where there is no picture.
    """
    pictures = sorted(
        (path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS),
        key=lambda path: path.relative_to(folder).as_posix(),
    )
    if not pictures:
        raise InputError(f"task.attach_images={folder}: there is no picture ({', '.join(ENDINGS)}) in this folder.")

    def attached(sample: Sample) -> Path:
        digest = hashlib.sha256(f"attached {sample.id}".encode()).digest()
        return pictures[int.from_bytes(digest[:8], "little") % len(pictures)]

    return [sample if sample.image is not None else replace(sample, image=attached(sample)) for sample in samples]
