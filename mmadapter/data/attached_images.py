"""Pictures that have nothing to do with a question, attached to it: does the answer stay the same?"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mmadapter.data.samples import Sample
from mmadapter.errors import InputError

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def with_attached_images(samples: Sequence[Sample], folder: Path) -> list[Sample]:
    """The samples, each one that has no picture with one from `folder` (and the folders in it).

    Which one depends on the sample's id and the files' names alone, so every model is shown the same. Raises
    InputError where there is no picture.
    """
    pictures = sorted((path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS), key=_name_below(folder))
    if not pictures:
        raise InputError(f"task.attach_images={folder}: there is no picture ({', '.join(ENDINGS)}) in this folder.")
    return [
        sample if sample.image is not None else replace(sample, image=pictures[_number(sample.id) % len(pictures)])
        for sample in samples
    ]


def _name_below(folder: Path):
    return lambda path: path.relative_to(folder).as_posix()


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"attached {name}".encode()).digest()[:8], "little")
