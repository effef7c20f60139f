"""COCO captions: Karpathy's dataset_coco.json, or the official captions_{split}*.json; pictures beside them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter.data.readers.images_on_disk import check_missing_image, settle_missing_images
from mmadapter.data.readers.json_file import read_json
from mmadapter.data.samples import Sample
from mmadapter.data.templates import CAPTION_TEMPLATES, caption_segments
from mmadapter.errors import InputError

log = logging.getLogger(__name__)
FOLDERS = ("", "annotations")
KARPATHY = "dataset_coco.json"
KARPATHY_SPLITS = {"train": ("train", "restval"), "restval": ("restval",), "val": ("val",), "test": ("test",)}
CAPTIONS_PER_IMAGE = ("all", "one")


@dataclass(frozen=True)
class Captioned:
    """One picture with its captions, whitespace collapsed, by caption id."""

    image_id: int
    image: Path
    captions: tuple[tuple[int, str], ...]


def read_coco_captions(
    root: Path,
    split: str,
    *,
    training: bool,
    source: str = "coco_captions",
    limit: int | None = None,
    template: str = "alpaca",
    captions_per_image: str = "all",
    seed: int = 0,
    missing_image: str = "error",
    with_images: bool = True,
    path: Path | None = None,
) -> list[Sample]:
    """The captioned pictures of one split; training: one sample a caption ("all") or a seeded one a picture ("one").

    Without training: one sample a picture, its captions in meta["references"]. `limit` counts pictures. With
    dataset_coco.json under the root (or named by `path`) the splits are Karpathy's, `train` meaning train + restval;
    else captions_{split}*.json is read.
    """
    check_missing_image(missing_image)
    _check_choice("template", template, CAPTION_TEMPLATES)
    _check_choice("captions_per_image", captions_per_image, CAPTIONS_PER_IMAGE)
    root = Path(root)
    if root.is_file():
        root, path = (root.parent.parent if root.parent.name == "annotations" else root.parent), root
    file = _find_file(root, split, path)
    pictures = list(_read_pictures(file, root, split))[:limit]
    if not pictures:
        raise InputError(f"{file}: split {split!r} holds no captioned picture.")
    samples = []
    for picture in pictures:
        chosen = _chosen(picture, captions_per_image, seed) if training else [(None, None)]
        where = f"{file.name}, image {picture.image_id}"
        for caption_id, caption in chosen:
            samples.append(
                Sample(
                    id=str(picture.image_id) if caption_id is None else f"{picture.image_id}-{caption_id}",
                    source=source,
                    segments=caption_segments(template, caption),
                    image=picture.image if with_images else None,
                    where=where if caption_id is None else f"{where}, caption {caption_id}",
                    meta={"references": [text for _, text in picture.captions], "image_id": picture.image_id},
                )
            )
    return settle_missing_images(samples, missing_image, f"{file}, split {split}")


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} is {value!r}; allowed: {', '.join(allowed)}.")


def _find_file(root: Path, split: str, named: Path | None) -> Path:
    if named is not None:
        return next((file for file in (Path(named), root / named) if file.is_file()), Path(named))
    for folder in FOLDERS:
        if (root / folder / KARPATHY).is_file():
            return root / folder / KARPATHY
    found = sorted(file for folder in FOLDERS for file in (root / folder).glob(f"captions_{split}*.json"))
    if len(found) == 1:
        return found[0]
    got = f"found {', '.join(file.name for file in found)}" if found else "found neither"
    raise InputError(
        f"{root}: expected {KARPATHY} or one captions_{split}*.json there or in its folder annotations; {got}. "
        "Check the data root and the split, or name the file with `path`."
    )


def _read_pictures(file: Path, root: Path, split: str) -> Iterable[Captioned]:
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{file}: expected an object with a list `images`; is this a COCO caption file?")
    if "annotations" in content:
        return _official(file, root, content)
    return _karpathy(file, root, content["images"], split)


def _karpathy(file: Path, root: Path, images: list[Any], split: str) -> Iterable[Captioned]:
    if split not in KARPATHY_SPLITS:
        raise InputError(f"{file}: there is no split {split!r}; allowed: {', '.join(KARPATHY_SPLITS)}.")
    pictures = []
    for number, entry in enumerate(images):
        where = f"{file}, images[{number}]"
        if _field(where, entry, "split", str) not in KARPATHY_SPLITS[split]:
            continue
        folder, name = entry.get("filepath", ""), _field(where, entry, "filename", str)
        sentences = _field(where, entry, "sentences", list)
        captions = [(_field(where, item, "sentid", int), _field(where, item, "raw", str)) for item in sentences]
        pictures.append((_field(where, entry, "cocoid", int), _picture_file(root, folder, name), captions))
    return _cleaned(file, pictures)


def _official(file: Path, root: Path, content: dict[str, Any]) -> Iterable[Captioned]:
    folder = file.stem.removeprefix("captions_")
    captions: dict[int, list[tuple[int, str]]] = {}
    for number, entry in enumerate(content["images"]):
        captions.setdefault(_field(f"{file}, images[{number}]", entry, "id", int), [])
    if len(captions) < len(content["images"]):
        raise InputError(f"{file}: {len(content['images']) - len(captions)} image ids stand twice in `images`.")
    for number, entry in enumerate(content["annotations"]):
        where = f"{file}, annotations[{number}]"
        image_id = _field(where, entry, "image_id", int)
        if image_id not in captions:
            raise InputError(f"{where}: image_id {image_id} is not in `images`.")
        captions[image_id].append((_field(where, entry, "id", int), _field(where, entry, "caption", str)))
    pictures = []
    for number, entry in enumerate(content["images"]):
        name = _field(f"{file}, images[{number}]", entry, "file_name", str)
        pictures.append((entry["id"], _picture_file(root, folder, name), captions[entry["id"]]))
    return _cleaned(file, pictures)


def _cleaned(file: Path, pictures: list[tuple[int, Path, list[tuple[int, str]]]]) -> Iterable[Captioned]:
    """Whitespace collapsed; empty captions and pictures without captions left out with a count."""
    cleaned, empty, bare = [], 0, 0
    for image_id, image, captions in pictures:
        collapsed = [(number, " ".join(text.split())) for number, text in captions]
        kept = tuple((number, text) for number, text in collapsed if text)
        empty += len(collapsed) - len(kept)
        if kept:
            cleaned.append(Captioned(image_id, image, kept))
        else:
            bare += 1
    if empty or bare:
        log.warning("%s: %d empty captions and %d pictures without a caption are left out.", file, empty, bare)
    return cleaned


def _picture_file(root: Path, folder: str, name: str) -> Path:
    """Where the picture is: as the file says, under images/, or COCO's 2017 layout of the same picture."""
    digits = name.rsplit("_", 1)[-1]
    candidates = [root / folder / name, root / "images" / folder / name, root / name, root / "images" / name]
    candidates += [root / year / digits for year in ("train2017", "val2017")]
    return next((candidate for candidate in candidates if candidate.is_file()), candidates[0])


def _chosen(picture: Captioned, captions_per_image: str, seed: int) -> list[tuple[int, str]]:
    if captions_per_image == "all":
        return list(picture.captions)
    digest = hashlib.sha256(f"{seed}/{picture.image_id}".encode()).digest()
    return [picture.captions[int.from_bytes(digest[:8], "little") % len(picture.captions)]]


def _field(where: str, entry: Any, name: str, kind: type) -> Any:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: expected an object, got {type(entry).__name__}.")
    if name not in entry:
        raise InputError(f"{where}: the field `{name}` is missing.")
    if not isinstance(entry[name], kind) or isinstance(entry[name], bool):
        got = f"{type(entry[name]).__name__} {str(entry[name])[:60]!r}"
        raise InputError(f"{where}: `{name}` is {got}; it must be {kind.__name__}.")
    return entry[name]
