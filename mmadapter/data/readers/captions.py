"""From captioned pictures, of whatever file layout, to samples: one a caption in training, one a picture else."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmadapter.data.readers import Purpose
from mmadapter.data.readers.defects import Defects, UnusedFields
from mmadapter.data.readers.pictures import OUTSIDE, ImageFolders, is_outside, settle_missing_images
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.settings import CaptionSettings
from mmadapter.data.templates import Turn, caption_segments, rendered
from mmadapter.errors import InputError

log = logging.getLogger(__name__)
WHOLE = "train"  # the one split of layouts that have none
EMPTY_CAPTION = "empty captions"
NO_CAPTION = "pictures without a caption"
ID_TWICE = "ids that stand twice"
NOT_HERE = "listed pictures that the caption files lack"


@dataclass(frozen=True, slots=True)
class Captioned:
    """One picture with its captions, whitespace collapsed, by caption id."""

    image_id: int | str
    image: Path
    captions: tuple[tuple[int | str, str], ...]
    where: str
    """file and place, for messages"""
    instruction: str | None = None
    """what the file asks for; None: the caption instruction"""
    attributes: Mapping[str, str] | None = None
    """what the file says of the picture by name, for scoring: {"color": "red"}"""


@dataclass
class CaptionFiles:
    """What caption files hold: pictures by split, and what was wrong."""

    files: list[Path]
    folders: ImageFolders
    may_leave: bool = False
    """whether pictures may lie outside of the folder"""
    splits: dict[str, list[Captioned]] = field(default_factory=dict)
    defects: Defects = field(default_factory=lambda: Defects(harmless=(EMPTY_CAPTION, NO_CAPTION, NOT_HERE)))
    unused: UnusedFields = field(default_factory=UnusedFields)
    captions_read: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    """files and entries that no caption belongs to, by kind"""
    verbatim: bool = False
    """whether all stays as it is in the file, pictures without a caption too: for what is scored"""
    there: set[str] = field(default_factory=set)
    """splits that the file has, those too that nobody asked for"""
    has_splits: bool = False
    """whether the file itself says which picture is of which split"""

    def add(
        self,
        split: str,
        image_id: int | str,
        image: str | Path,
        captions: Sequence[tuple[int | str, str]],
        where: str,
        instruction: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """Takes in one picture of a file: whitespace collapsed, otherwise unchanged; what is empty is counted.

        `image` is the name that the file gives, or a path.
        """
        self.captions_read += len(captions)
        if not self.verbatim:
            captions = [(number, " ".join(text.split())) for number, text in captions]
            for number, text in captions:
                if not text:
                    self.defects.add(EMPTY_CAPTION, f"{where}, caption {number}", captions=1)
            captions = [one for one in captions if one[1]]
            if not captions:
                self.defects.add(NO_CAPTION, where)
                return
        if isinstance(image, str) and not self.may_leave and is_outside(image, [self.folders.root]):
            self.defects.add(OUTSIDE, f"{where}: {image[:200]!r}", captions=len(captions))
            return
        path = self.folders.find(image) if isinstance(image, str) else image
        picture = Captioned(image_id, path, tuple(captions), where, instruction, attributes)
        self.splits.setdefault(split, []).append(picture)

    def lose(self, reason: str, where: str, captions: int) -> None:
        """Counts an item of a file that cannot be used, with the captions that it has."""
        self.captions_read += captions
        self.defects.add(reason, where, captions)

    @property
    def what(self) -> str:
        """The file for messages, or the first of several."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


def caption_samples(
    found: CaptionFiles, settings: CaptionSettings, purpose: Purpose, captions_per_image: str = "all"
) -> list[Sample]:
    """One sample a caption ("all") or a seeded one a picture ("one") in training; else one a picture.

    The captions stand in meta["references"]. `limit` counts pictures. Raises InputError where on_bad=error and an item
    cannot be used, and where missing_image=error and a picture is absent.
    """
    remedy = "Fix them, or set on_bad=skip (they are left out and counted)."
    found.defects.settle(found.what, remedy, skip=settings.on_bad == "skip")
    for notice in found.unused.notice(found.what):
        log.warning("%s", notice)
    if settings.split not in found.splits:
        there = ", ".join(sorted(found.there | found.splits.keys())) or "none with a caption"
        raise InputError(
            f"{found.what}: there is no split {settings.split!r}; there is: {there}. Set split to one of them, or name "
            "a file that holds it (path)."
        )
    samples: list[Sample] = []

    def asked(instruction: str | None, caption: str | None = None) -> tuple[Segment, ...]:
        if instruction is None:
            return caption_segments(settings.template, caption, purpose.tokenizer)
        return rendered([Turn(instruction, caption)], None, settings.template, purpose.tokenizer)

    usual_prompt = asked(None)
    for picture in found.splits[settings.split][: settings.limit]:
        if picture.instruction is not None and settings.template == "plain":
            raise InputError(
                f"{picture.where}: it has a question of its own, but template=plain asks one fixed question. Set "
                "template=alpaca, or instruction=caption where the dialogs are read."
            )
        prompt = usual_prompt if picture.instruction is None else asked(picture.instruction)
        image = picture.image if settings.images else None
        references = [text for _, text in picture.captions]
        meta: dict[str, Any] = {"references": references, "image_id": picture.image_id}
        if picture.attributes:
            meta["attributes"] = picture.attributes
        if not purpose.training:
            samples.append(Sample(str(picture.image_id), purpose.source, prompt, image, picture.where, meta))
            continue
        chosen: Iterable[tuple[int | str, str]] = picture.captions
        if captions_per_image == "one":
            digest = hashlib.sha256(f"{purpose.seed}/{picture.image_id}".encode()).digest()
            chosen = [picture.captions[int.from_bytes(digest[:8], "little") % len(picture.captions)]]
        for number, caption in chosen:
            name, where = f"{picture.image_id}-{number}", f"{picture.where}, caption {number}"
            # The prompt's segments and the meta are shared by all samples: a training set has half a million of them.
            segments = (*prompt, *asked(picture.instruction, caption)[len(prompt) :])
            samples.append(Sample(name, purpose.source, segments, image, where, meta))
    return settle_missing_images(samples, settings.missing_image, f"{found.what}, split {settings.split}")
