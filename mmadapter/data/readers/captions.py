"""From captioned pictures, of whatever file layout, to samples: one a caption in training, one a picture else."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mmadapter.data.readers.defects import EMPTY_CAPTION, NO_CAPTION, Defects
from mmadapter.data.readers.images_on_disk import ImageFolders, settle_missing_images
from mmadapter.data.readers.many_objects import collection_paused
from mmadapter.data.samples import Sample, Segment
from mmadapter.data.templates import CAPTION_TEMPLATES, alpaca_segments, caption_segments
from mmadapter.errors import InputError

CAPTIONS_PER_IMAGE = ("all", "one")
WHOLE = "train"  # the one split of layouts that have none


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


@dataclass
class CaptionFiles:
    """What caption files hold: pictures by split, and what was wrong."""

    files: list[Path]
    folders: ImageFolders
    splits: dict[str, list[Captioned]] = field(default_factory=dict)
    defects: Defects = field(default_factory=Defects)
    captions_read: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    """files and entries that no caption belongs to, by kind"""

    def add(
        self,
        split: str,
        image_id: int | str,
        image: Path,
        captions: Sequence[tuple[int | str, str]],
        where: str,
        instruction: str | None = None,
    ) -> None:
        """Takes in one picture of a file: whitespace collapsed, otherwise unchanged; what is empty is counted."""
        self.captions_read += len(captions)
        collapsed = [(number, " ".join(text.split())) for number, text in captions]
        kept = tuple((number, text) for number, text in collapsed if text)
        for number, text in collapsed:
            if not text:
                self.defects.add(EMPTY_CAPTION, f"{where}, caption {number}")
        if kept:
            self.splits.setdefault(split, []).append(Captioned(image_id, image, kept, where, instruction))
        else:
            self.defects.add(NO_CAPTION, where, captions=0)

    def lose(self, reason: str, where: str, captions: int) -> None:
        """Counts an item of a file that cannot be used, with the captions that it has."""
        self.captions_read += captions
        self.defects.add(reason, where, captions)

    def pictures(self, split: str, limit: int | None) -> list[Captioned]:
        """The first `limit` pictures of a split; raises InputError naming the splits where there is no such one."""
        if split not in self.splits:
            there = ", ".join(self.splits) or "none with a caption"
            raise InputError(f"{self.what}: there is no split {split!r}; there is: {there}.")
        return self.splits[split][:limit]

    @property
    def what(self) -> str:
        """The file for messages, or the first of several."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0]}{more}"


@collection_paused()
def caption_samples(
    found: CaptionFiles,
    split: str,
    *,
    training: bool,
    source: str,
    limit: int | None = None,
    template: str = "alpaca",
    captions_per_image: str = "all",
    seed: int = 0,
    missing_image: str = "error",
    with_images: bool = True,
    on_bad: str = "error",
) -> list[Sample]:
    """One sample a caption ("all") or a seeded one a picture ("one") in training; else one a picture.

    The captions stand in meta["references"]. `limit` counts pictures. Raises InputError where on_bad=error and an item
    cannot be used, and where missing_image=error and a picture is absent.
    """
    check_choice("template", template, CAPTION_TEMPLATES)
    check_choice("captions_per_image", captions_per_image, CAPTIONS_PER_IMAGE)
    found.defects.settle(on_bad, found.what)
    samples: list[Sample] = []
    for picture in found.pictures(split, limit):
        image = picture.image if with_images else None
        meta = {"references": [text for _, text in picture.captions], "image_id": picture.image_id}
        prompt = _prompt(picture, template)
        if not training:
            samples.append(Sample(str(picture.image_id), source, prompt, image, picture.where, meta))
            continue
        for number, caption in chosen_captions(picture, captions_per_image, seed):
            name, where = f"{picture.image_id}-{number}", f"{picture.where}, caption {number}"
            # The prompt's segments and the meta are shared by all samples: a training set has half a million of them.
            segments = (*prompt, caption_segments(template, caption)[-1])
            samples.append(Sample(name, source, segments, image, where, meta))
    return settle_missing_images(samples, missing_image, f"{found.what}, split {split}")


def chosen_captions(picture: Captioned, captions_per_image: str, seed: int) -> Iterable[tuple[int | str, str]]:
    """All captions of a picture, or one that `seed` and the picture's id decide."""
    if captions_per_image == "all":
        return picture.captions
    digest = hashlib.sha256(f"{seed}/{picture.image_id}".encode()).digest()
    return [picture.captions[int.from_bytes(digest[:8], "little") % len(picture.captions)]]


def check_choice(name: str, value: str, allowed: Sequence[str]) -> None:
    """Raises InputError where `value` is none of `allowed`."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}.")


def named_file(root: Path, named: Path | str | None, endings: Sequence[str], what: str) -> Path:
    """The file `named` (under the root, or as it is), `root` itself, or the only file in it with one of the endings."""
    if named is not None:
        return next((file for file in (root / named, Path(named)) if file.is_file()), Path(named))
    if root.is_file():
        return root
    found = sorted(file for file in root.glob("*") if file.suffix in endings and file.is_file())
    for ending in endings:  # in order: a list of files before the files that it names
        if of_kind := [file for file in found if file.suffix == ending]:
            found = of_kind
            break
    if len(found) == 1:
        return found[0]
    got = f"found {', '.join(file.name for file in found[:5])}" if found else "found none"
    raise InputError(f"{root}: expected one {what} (*{', *'.join(endings)}); {got}. Name the file with `path`.")


def _prompt(picture: Captioned, template: str) -> tuple[Segment, ...]:
    if picture.instruction is None:
        return _CAPTION_PROMPTS[template]
    if template != "alpaca":
        raise InputError(
            f"{picture.where}: it has a question of its own, but template={template} asks one fixed question. Set "
            "template=alpaca, or instruction=caption where the dialogs are read."
        )
    return alpaca_segments(picture.instruction)


_CAPTION_PROMPTS = {template: caption_segments(template) for template in CAPTION_TEMPLATES}
