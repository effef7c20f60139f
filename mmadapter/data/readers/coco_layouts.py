"""The public layouts of COCO captions, entry by entry; a bad entry is a defect with its place in the file.

`pycocotools` reads the official files too, but only them, dies with a bare KeyError on a damaged entry and keeps a
second copy of all; it reads what is scored (`evaluation`), and a test holds both readings equal.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from mmadapter.data.readers.captions import ID_TWICE, NOT_HERE, CaptionFiles
from mmadapter.data.readers.defects import BadEntry, entry_field
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.errors import InputError

KARPATHY_SPLITS = {"train": ("train", "restval"), "restval": ("restval",), "val": ("val",), "test": ("test",)}
LISTED = ("val", "test")  # the splits that a list of pictures is published for
UNKNOWN_IMAGE = "annotations of a picture that is not in `images`"
IN_NO_LIST = "pictures in no list (train needs both lists)"
Captions = list[tuple[int | str, str]]


def is_coco_name(name: str) -> bool:
    """Whether a picture's file is named as COCO names its own."""
    return ImageFolders.COCO.fullmatch(name) is not None


def karpathy(found: CaptionFiles, file: Path, images: Sequence[Any], only: str | None) -> None:
    """dataset_coco.json: {images: [{filepath, filename, cocoid, split, sentences: [{raw, sentid}]}]}."""
    wanted = {
        part: split for split in ((only,) if only else ("train", "val", "test")) for part in KARPATHY_SPLITS[split]
    }
    seen: set[int] = set()
    for number, entry in enumerate(images):
        try:
            image_id = entry_field(entry, "cocoid", int)
            split = wanted.get(entry_field(entry, "split", str))
            if image_id in seen:
                raise BadEntry(f"cocoid {image_id} stands there twice (again in split {entry['split']})", ID_TWICE)
            seen.add(image_id)
            if split is None:
                continue
            name = f"{entry.get('filepath', '')}/{entry_field(entry, 'filename', str)}".lstrip("/")
            sentences = entry_field(entry, "sentences", list)
            captions = [(entry_field(one, "sentid", int), entry_field(one, "raw", str)) for one in sentences]
        except BadEntry as error:
            found.lose(error.reason, f"{file.name}, images[{number}]: {error}", _length(entry, "sentences"))
            continue
        found.add(split, image_id, found.folders.find(name), captions, f"{file.name}, image {image_id}")


def official(
    found: CaptionFiles, contents: Sequence[tuple[Path, Any]], lists: Mapping[str, Set[int]], split: str | None
) -> None:
    """captions_*.json: {images: [{id, file_name}], annotations: [{image_id, id, caption}]}, of one or several files.

    Without `lists` all of it is `split`. With them a picture is of the split whose list it stands in; it is of train
    where it stands in neither of the two. None of several splits: all.
    """
    seen: set[int] = set()
    for file, content in contents:
        captions = _captions_by_image(found, file, content)
        for number, entry in enumerate(content["images"]):
            try:
                image_id = entry_field(entry, "id", int)
                # Captions that are scored need no picture.
                name = str(entry.get("file_name", "")) if found.verbatim else entry_field(entry, "file_name", str)
                if image_id in seen:
                    raise BadEntry(f"image id {image_id} stands there twice", ID_TWICE)
            except BadEntry as error:
                lost = captions.get(_id(entry) or 0, ()) if error.reason != ID_TWICE else ()
                found.lose(error.reason, f"{file.name}, images[{number}]: {error}", len(lost))
                continue
            seen.add(image_id)
            of_split = _official_split(image_id, lists, split)
            if of_split is None:
                found.ignored[IN_NO_LIST] += 1
            elif split in (None, of_split):
                image = found.folders.find(f"{file.stem.removeprefix('captions_')}/{name}")
                found.add(of_split, image_id, image, captions[image_id], f"{file.name}, image {image_id}")
    for listed in lists if split is None else {split} & lists.keys():
        for image_id in sorted(lists[listed] - seen):
            found.lose(NOT_HERE, f"{image_id} ({listed})", 0)


def _official_split(image_id: int, lists: Mapping[str, Set[int]], split: str | None) -> str | None:
    """The split of a picture; None where it stands in no list and there are not both."""
    if not lists:
        return split or "train"
    whole = "train" if len(lists) == len(LISTED) else None
    return next((name for name, ids in lists.items() if image_id in ids), whole)


def lavis(found: CaptionFiles, file: Path, entries: Sequence[Any], split: str) -> None:
    """coco_karpathy_*.json: a list of {image, caption, image_id}, a caption each (train) or a list of them each.

    The picture's number in its file name is the image id (LAVIS's "coco_42" where it has none). Captions have no ids:
    they are numbered through the file.
    """
    pictures: dict[int | str, tuple[str, Captions, str]] = {}
    number_of_caption = 0
    for number, entry in enumerate(entries):
        where = f"{file.name}, [{number}]"
        try:
            name = entry_field(entry, "image", str)
            image_id = _lavis_id(entry, name)
            caption = entry_field(entry, "caption", str, list)
            texts = [caption] if isinstance(caption, str) else caption
            if not all(isinstance(text, str) for text in texts):
                raise BadEntry("`caption` is a list that does not hold texts only")
            if pictures.get(image_id, (name,))[0] != name:
                raise BadEntry(
                    f"image id {image_id} belongs to {pictures[image_id][0]}, too, not only to {name}", ID_TWICE
                )
        except BadEntry as error:
            found.lose(error.reason, f"{where}: {error}", _length(entry, "caption") or 1)
            continue
        captions = pictures.setdefault(image_id, (name, [], f"{file.name}, image {image_id}"))[1]
        for text in texts:
            number_of_caption += 1
            captions.append((number_of_caption, text))
    for image_id, (name, captions, where) in pictures.items():
        found.add(split, image_id, found.folders.find(name), captions, where)


def own(found: CaptionFiles, file: Path, entries: Sequence[Any], split: str) -> None:
    """What data_prep.coco_caption writes, a picture a line: {image_id, image, captions: [{id, caption}], instruction}.

    `instruction` is there only where the input had one for each picture.
    """
    seen: set[int | str] = set()
    for number, entry in enumerate(entries, 1):
        try:
            name, listed = entry_field(entry, "image", str), entry_field(entry, "captions", list)
            image_id = entry_field(entry, "image_id", str, int)
            captions = [(entry_field(one, "id", str, int), entry_field(one, "caption", str)) for one in listed]
            instruction = entry_field(entry, "instruction", str) if "instruction" in entry else None
            if image_id in seen:
                raise BadEntry(f"image id {image_id} stands there twice", ID_TWICE)
        except BadEntry as error:
            found.lose(error.reason, f"{file.name}, item {number}: {error}", _length(entry, "captions"))
            continue
        seen.add(image_id)
        where = f"{file.name}, image {image_id}"
        found.add(split, image_id, found.folders.find(name), captions, where, instruction)


def listed_ids(file: Path) -> set[int]:
    """The image ids of karpathy_val_images.txt: lines of "val2014/COCO_val2014_%012d.jpg ID"."""
    ids: set[int] = set()
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: the list of pictures cannot be read ({error}).") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = re.fullmatch(r"(?:\S+/)?(\S+)\s+(\d+)", line.strip())
        image_id = int(match[2]) if match else -1
        named = ImageFolders.COCO.fullmatch(match[1]) if match else None
        if match is None or (named is not None and int(named[1]) != image_id):
            raise InputError(f'{file}, line {number}: {line.strip()[:80]!r}; expected "val2014/COCO_val2014_….jpg ID".')
        if image_id in ids:
            raise InputError(f"{file}, line {number}: image id {image_id} stands there twice.")
        ids.add(image_id)
    if not ids:
        raise InputError(f"{file}: the list of pictures is empty. Fetch it again.")
    return ids


def _captions_by_image(found: CaptionFiles, file: Path, content: Any) -> dict[int, Captions]:
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise InputError(f"{file}: expected an object with the lists `images` and `annotations`.")
    captions: dict[int, Captions] = {}
    for entry in content["images"]:
        if (image_id := _id(entry)) is not None:
            captions[image_id] = []
    seen: set[int] = set()
    for number, entry in enumerate(content["annotations"]):
        try:
            image_id, annotation = entry_field(entry, "image_id", int), entry_field(entry, "id", int)
            text = entry_field(entry, "caption", str)
            if image_id not in captions:
                raise BadEntry(f"image_id {image_id} is not in `images`", UNKNOWN_IMAGE)
            if annotation in seen:
                raise BadEntry(f"annotation id {annotation} stands there twice", ID_TWICE)
        except BadEntry as error:
            found.lose(error.reason, f"{file.name}, annotations[{number}]: {error}", 1)
            continue
        seen.add(annotation)
        captions[image_id].append((annotation, text))
    return captions


def _id(entry: Any) -> int | None:
    image_id = entry.get("id") if isinstance(entry, dict) else None
    return image_id if isinstance(image_id, int) else None


def _lavis_id(entry: Any, name: str) -> int | str:
    stated = entry.get("image_id")
    number = re.fullmatch(r"(?:coco_)?(\d+)", str(stated)) if stated is not None else None
    named = ImageFolders.COCO.fullmatch(name.rsplit("/", 1)[-1])
    if number and named and int(number[1]) != int(named[1]):
        raise BadEntry(f"`image_id` is {stated!r}, but `image` is {name!r}")
    digits = named or number
    return int(digits[1]) if digits else name


def _length(entry: Any, name: str) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    return len(value) if isinstance(value, list) else 0
