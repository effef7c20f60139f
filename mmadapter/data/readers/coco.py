"""COCO captions in the public layouts: Karpathy's, LAVIS's, the official one with or without split lists, and ours.

`pycocotools` reads the official files too, but only them, dies with a bare KeyError on a damaged entry and keeps a
second copy of all; a test holds both readings equal.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mmadapter.data.readers import Purpose
from mmadapter.data.readers.captions import ID_TWICE, NOT_HERE, CaptionFiles, caption_samples
from mmadapter.data.readers.defects import BadEntry, entry_field
from mmadapter.data.readers.json_file import read_json, read_json_lines
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.data.samples import Sample
from mmadapter.data.settings import CocoSettings
from mmadapter.errors import InputError, described

log = logging.getLogger(__name__)
FOLDERS = ("", "annotations")
KARPATHY = "dataset_coco.json"
KARPATHY_SPLITS = {"train": ("train", "restval"), "restval": ("restval",), "val": ("val",), "test": ("test",)}
LAVIS = "coco_karpathy_{}.json"
SPLITS = ("train", "val", "test")
SPLIT_LIST = "karpathy_{}_images.txt"
LISTED = ("val", "test")  # the splits that a list of pictures is published for
UNUSED = ("tokens", "sentids")  # most of dataset_coco.json's size
# The fields of each layout that are read, and those that the published files have besides.
FILE_FIELDS = ("images", "annotations", "info", "licenses", "type", "dataset", "categories")
KARPATHY_FIELDS = ("cocoid", "split", "filepath", "filename", "sentences", "attributes")
KARPATHY_PUBLISHED = ("imgid", "sentids", "tokens")
OFFICIAL_FIELDS = ("id", "file_name")
OFFICIAL_PUBLISHED = ("license", "coco_url", "flickr_url", "date_captured", "width", "height")
ANNOTATION_FIELDS = ("id", "image_id", "caption")
UNKNOWN_IMAGE = "annotations of a picture that is not in `images`"
IN_NO_LIST = "pictures in no list (train needs both lists)"
# Karpathy's splits: pictures and captions (train has restval in it).
REAL_SIZES = {"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)}
Captions = Sequence[tuple[int | str, str]]


def read_coco_captions(settings: CocoSettings, purpose: Purpose) -> list[Sample]:
    """The captioned pictures of one split as samples (see `caption_samples`).

    Looked for under the root, or named by `path`: dataset_coco.json, whose split `train` means train + restval;
    coco_karpathy_{split}.json; the official captions_{train,val}2014.json with Karpathy's lists of pictures
    (`split_lists` names their folder), where `train` is all that is in no list; captions_{split}*.json alone;
    {split}.jsonl as data_prep.coco_caption writes it.
    """
    assert settings.root is not None
    places = Path(settings.root), settings.path, settings.split_lists
    found = coco_files(*places, settings.split, settings.may_leave)
    samples = caption_samples(found, settings, purpose, settings.captions_per_image)

    # A split of COCO's names and about its size that has not Karpathy's counts; of our own files, the manifest says it.
    for split, pictures in found.splits.items():
        got = (len(pictures), sum(len(picture.captions) for picture in pictures))
        wanted = REAL_SIZES.get(split, got)
        ours = any(file.suffix == ".jsonl" for file in found.files)
        if got != wanted and got[0] >= wanted[0] / 2 and is_coco_name(pictures[0].image.name) and not ours:
            log.warning(
                f"{found.what}: split {split} has {got[0]:,} pictures and {got[1]:,} captions; "
                f"Karpathy's has {wanted[0]:,} and {wanted[1]:,}. Is the download whole?"
            )
    return samples


def is_coco_name(name: str) -> bool:
    """Whether a picture's file is named as COCO names its own."""
    return ImageFolders.COCO.fullmatch(name) is not None


# Which files there are.


def coco_files(
    root: Path,
    path: str | Path | None,
    split_lists: str | Path | None,
    only: str | None = None,
    may_leave: bool = False,
) -> CaptionFiles:
    """All splits that are there, or `only` one of them. Raises InputError where no layout is recognised.

    `may_leave`: whether pictures may lie outside of the root.
    """
    file = _find(root, KARPATHY) if path is None else Path(path)
    if file is not None:
        found = CaptionFiles([file], ImageFolders(root), may_leave)
        _read_file(found, file, split_lists, only)
        return found
    found = CaptionFiles([], ImageFolders(root), may_leave)
    wanted = SPLITS if only is None else (only,)
    for pattern, read in ((LAVIS, _lavis), ("{}.jsonl", _own)):
        for split in wanted:
            if (file := _find(root, pattern.format(split))) is not None:
                found.files.append(file)
                read(found, file, read_json_lines(file) if file.suffix == ".jsonl" else read_json(file), split)
        if found.files:
            return found

    # Official files, captions_{split}*.json: each is its split, or the lists split those of train and val anew.
    lists = _split_lists(root, split_lists, found)
    if lists and only not in (None, *SPLITS):
        raise InputError(f"{root}: there is no split {only!r}; allowed: {', '.join(SPLITS)}.")
    if only == "train" and len(lists) == 1:
        raise InputError(
            f"{root}: split train is what stands in neither list of pictures, but there is only "
            f"{', '.join(SPLIT_LIST.format(split) for split in lists)}. Put the other list beside it."
        )
    if lists and only in LISTED and only not in lists:
        raise InputError(
            f"{root}: split {only} is the pictures in {SPLIT_LIST.format(only)}, which is not there; there is "
            f"{', '.join(SPLIT_LIST.format(split) for split in lists)}. Put the other list beside it."
        )
    names, pattern = (("train", "val"), "captions_{}20??.json") if lists else (wanted, "captions_{}*.json")
    files: dict[str, Path] = {}
    for split in names:
        there = sorted(file for folder in FOLDERS for file in (root / folder).glob(pattern.format(split)))
        if len(there) == 1:
            files[split] = there[0]
        elif there or (split == names[-1] and not files):
            got = f"found {', '.join(file.name for file in there)}" if there else "found neither"
            raise InputError(
                f"{root}: expected {KARPATHY} or one {pattern.format(split)} there or in its folder annotations (or "
                f"{LAVIS.format(split)}, {split}.jsonl); {got}. Check the data root and the split, or name the file "
                "with `path`."
            )
    found.files[:0] = files.values()
    if lists:
        _official(found, [(file, read_json(file)) for file in files.values()], lists, only)
    else:
        for split, file in files.items():
            _official(found, [(file, read_json(file))], {}, split)
    return found


def scored_captions(file: Path, split: str) -> CaptionFiles:
    """What one file has of a split (all of it, where it knows none), word for word, as answers are scored against it.

    Raises InputError naming every place of the file that cannot be used.
    """
    if not file.is_file():
        raise InputError(f"{file}: there is no such file. Check task.annotations.")
    found = CaptionFiles([file], ImageFolders(file.parent), may_leave=True, verbatim=True)  # no picture is read
    found.defects.harmless = ()
    _read_file(found, file, None, split)
    found.defects.settle(str(file), "Check task.annotations.")
    for notice in found.unused.notice(file):
        log.warning("%s", notice)
    return found


def _find(root: Path, name: str) -> Path | None:
    return next((root / folder / name for folder in FOLDERS if (root / folder / name).is_file()), None)


def _read_file(found: CaptionFiles, file: Path, split_lists: str | Path | None, only: str | None) -> None:
    """A file whose content says which layout it is of; where it has no splits, it is the split that is asked for."""
    split = only or next((split for split in SPLITS if split in file.stem), "train")
    if file.suffix == ".jsonl":
        _own(found, file, read_json_lines(file), split)
        return
    content = read_json(file, without=UNUSED)
    if isinstance(content, list):
        _lavis(found, file, content, split)
    elif not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{file}: expected an object with a list `images`; is this a COCO caption file?")
    elif isinstance(content.get("annotations"), list):
        lists = {} if split_lists is None else _split_lists(found.folders.root, split_lists, found)
        _official(found, [(file, content)], lists, split)
    else:
        found.unused.note(content, file.name, FILE_FIELDS)
        if only is not None and only not in KARPATHY_SPLITS:
            raise InputError(f"{file}: there is no split {only!r}; allowed: {', '.join(KARPATHY_SPLITS)}.")
        found.has_splits = True
        _karpathy(found, file, content["images"], only)


def _split_lists(root: Path, folder: str | Path | None, found: CaptionFiles) -> dict[str, set[int]]:
    """The ids in karpathy_val_images.txt and karpathy_test_images.txt, of those that are there.

    Their lines are "val2014/COCO_val2014_%012d.jpg ID".
    """
    if folder is not None:
        places = [path for path in (root / folder, Path(folder)) if path.is_dir()] or [Path(folder)]
    else:
        places = [root / folder for folder in FOLDERS]
    lists: dict[str, set[int]] = {}
    for split in LISTED:
        file = next((file for place in places if (file := place / SPLIT_LIST.format(split)).is_file()), None)
        if file is None:
            continue
        found.files.append(file)
        ids = lists[split] = set()
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file}: the list of pictures cannot be read ({error}).") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            match = re.fullmatch(r"(?:\S+/)?(\S+)\s+(\d+)", line.strip())
            named = ImageFolders.COCO.fullmatch(match[1]) if match else None
            if match is None or (named is not None and int(named[1]) != int(match[2])):
                expected = 'expected "val2014/COCO_val2014_….jpg ID"'
                raise InputError(f"{file}, line {number}: {line.strip()[:80]!r}; {expected}.")
            if int(match[2]) in ids:
                raise InputError(f"{file}, line {number}: image id {match[2]} stands there twice.")
            ids.add(int(match[2]))
        if not ids:
            raise InputError(f"{file}: the list of pictures is empty. Fetch it again.")
    if folder is not None and not lists:
        raise InputError(f"split_lists={folder}: there is no {SPLIT_LIST.format('val')} and no test list there.")
    if both := set.intersection(*lists.values()) if len(lists) == 2 else set():
        raise InputError(f"{places[0]}: picture {min(both)} stands in the val list and in the test list.")
    return lists


# The layouts, entry by entry; a bad entry is a defect with its place in the file.


class Entry(NamedTuple):
    """What one entry of a file says of a picture. Where `split` is None nobody asks for it, and only its id counts."""

    image_id: int | str
    split: str | None
    name: str = ""
    captions: Captions = ()
    instruction: str | None = None
    attributes: Mapping[str, str] | None = None


def _take(
    found: CaptionFiles,
    file: Path,
    entries: Sequence[Any],
    parse: Callable[[Any], Entry],
    listed: str,
    place: str = "images[{0}]",
    seen: set[int | str] | None = None,
) -> None:
    """Adds what `parse` makes of each entry, whose captions are the list `listed`; `seen`: ids of earlier files."""
    seen = set() if seen is None else seen
    for number, entry in enumerate(entries):
        try:
            one = parse(entry)
            if one.image_id in seen:
                own = entry.get("split")
                again = f" (again in split {own})" if own else ""
                raise BadEntry(f"image id {one.image_id} stands there twice{again}", ID_TWICE)
        except BadEntry as error:
            where = f"{file.name}, {place.format(number, number + 1)}"
            found.lose(error.reason, f"{where}: {error}", _length(entry, listed))
            continue
        seen.add(one.image_id)
        if one.split is not None:
            where = f"{file.name}, image {one.image_id}"
            found.add(one.split, one.image_id, one.name, one.captions, where, one.instruction, one.attributes)


def _karpathy(found: CaptionFiles, file: Path, images: Sequence[Any], only: str | None) -> None:
    """dataset_coco.json: {images: [{filepath, filename, cocoid, split, sentences: [{raw, sentid}]}]}.

    With a field of ours, which a picture may have: `attributes`.
    """
    split_of = {part: split for split in ((only,) if only else SPLITS) for part in KARPATHY_SPLITS[split]}

    def parse(entry: Any) -> Entry:
        image_id, own = entry_field(entry, "cocoid", int), entry_field(entry, "split", str)
        found.unused.note(entry, f"image {image_id}", KARPATHY_FIELDS, KARPATHY_PUBLISHED)
        if own not in KARPATHY_SPLITS:
            raise BadEntry(f"`split` is {described(own)}; allowed are {', '.join(KARPATHY_SPLITS)}")
        found.there.add(own)
        split = split_of.get(own)
        if split is None:
            return Entry(image_id, None)
        name = f"{entry.get('filepath', '')}/{entry_field(entry, 'filename', str)}".lstrip("/")
        sentences = entry_field(entry, "sentences", list)
        captions = [(entry_field(one, "sentid", int), entry_field(one, "raw", str)) for one in sentences]
        for one in sentences:
            found.unused.note(one, f"image {image_id}, `sentences`", ("sentid", "raw"), KARPATHY_PUBLISHED)
        return Entry(image_id, split, name, captions, attributes=attributes_of(entry))

    _take(found, file, images, parse, "sentences")


def attributes_of(entry: Mapping[str, Any]) -> Mapping[str, str] | None:
    """What an entry says of its picture, attribute by attribute; None where it says nothing."""
    if "attributes" not in entry:
        return None
    attributes: Mapping[str, Any] = entry_field(entry, "attributes", dict)
    for name, value in attributes.items():
        if not isinstance(value, str) or not value.strip():
            raise BadEntry(f"`attributes` has {described(value)} for {name!r}; expected a word or a few")
    return attributes


def _own(found: CaptionFiles, file: Path, entries: Sequence[Any], split: str) -> None:
    """What data_prep.coco_caption writes, a picture a line: {image_id, image, captions: [{id, caption}]}.

    With `instruction` and `attributes` where the input had them.
    """

    def parse(entry: Any) -> Entry:
        name, listed = entry_field(entry, "image", str), entry_field(entry, "captions", list)
        image_id = entry_field(entry, "image_id", str, int)
        captions = [(entry_field(one, "id", str, int), entry_field(one, "caption", str)) for one in listed]
        instruction = entry_field(entry, "instruction", str) if "instruction" in entry else None
        found.unused.note(entry, f"image {image_id}", ("image_id", "image", "captions", "instruction", "attributes"))
        for one in listed:
            found.unused.note(one, f"image {image_id}, `captions`", ("id", "caption"))
        return Entry(image_id, split, name, captions, instruction, attributes_of(entry))

    _take(found, file, entries, parse, "captions", "item {1}")


def _official(
    found: CaptionFiles, contents: Sequence[tuple[Path, Any]], lists: Mapping[str, Set[int]], split: str | None
) -> None:
    """captions_*.json: {images: [{id, file_name}], annotations: [{image_id, id, caption}]}, of one or several files.

    Without `lists` all of it is `split`. With them a picture is of the split whose list it stands in; it is of train
    where it stands in neither of the two. None of several splits: all.
    """
    seen: set[int | str] = set()
    in_no_list = "train" if len(lists) == len(LISTED) else None

    def parse(folder: str, captions: Mapping[int, Captions], entry: Any) -> Entry:
        image_id = entry_field(entry, "id", int)
        # Captions that are scored need no picture.
        name = str(entry.get("file_name", "")) if found.verbatim else entry_field(entry, "file_name", str)
        own = next((one for one, ids in lists.items() if image_id in ids), in_no_list) if lists else split
        if own is None and image_id not in seen:
            found.ignored[IN_NO_LIST] += 1
        return Entry(image_id, own if split in (None, own) else None, f"{folder}/{name}", captions[image_id])

    for file, content in contents:
        captions = _join_annotations(found, file, content)
        folder = file.stem.removeprefix("captions_")
        _take(found, file, content["images"], partial(parse, folder, captions), "captions", seen=seen)
    for listed in lists if split is None else {split} & lists.keys():
        for image_id in sorted(lists[listed] - seen):
            found.lose(NOT_HERE, f"{image_id} ({listed})", 0)


def _join_annotations(found: CaptionFiles, file: Path, content: Any) -> dict[int, list[tuple[int | str, str]]]:
    """Image id -> its captions, of an official file. Each picture's entry gets them, too, to count what is lost with
    it; where it stands there twice, the first entry."""
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in ("images", "annotations")):
        raise InputError(f"{file}: expected an object with the lists `images` and `annotations`.")
    found.unused.note(content, file.name, FILE_FIELDS)
    captions: dict[int, list[tuple[int | str, str]]] = {}
    for number, entry in enumerate(content["images"]):
        found.unused.note(entry, f"{file.name}, images[{number}]", OFFICIAL_FIELDS, OFFICIAL_PUBLISHED)
        if isinstance(entry, dict):
            image_id = entry.get("id")
            is_new = isinstance(image_id, int) and image_id not in captions
            entry["captions"] = captions.setdefault(entry["id"], []) if is_new else []
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
        found.unused.note(entry, f"{file.name}, annotations[{number}]", ANNOTATION_FIELDS)
        seen.add(annotation)
        captions[image_id].append((annotation, text))
    return captions


def _lavis(found: CaptionFiles, file: Path, entries: Sequence[Any], split: str) -> None:
    """coco_karpathy_*.json: a list of {image, caption, image_id}, a caption each (train) or a list of them each.

    The picture's number in its file name is the image id (LAVIS's "coco_42" where it has none). Captions have no ids:
    they are numbered through the file.
    """
    pictures: dict[int | str, tuple[str, list[tuple[int | str, str]]]] = {}
    captions_so_far = 0
    for number, entry in enumerate(entries):
        try:
            name = entry_field(entry, "image", str)
            stated = entry.get("image_id")
            digits = re.fullmatch(r"(?:coco_)?(\d+)", str(stated))
            named = ImageFolders.COCO.fullmatch(name.rsplit("/", 1)[-1])
            if digits and named and int(digits[1]) != int(named[1]):
                raise BadEntry(f"`image_id` is {stated!r}, but `image` is {name!r}")
            told = named or digits
            image_id = int(told[1]) if told else name
            caption = entry_field(entry, "caption", str, list)
            texts = [caption] if isinstance(caption, str) else caption
            if not all(isinstance(text, str) for text in texts):
                raise BadEntry("`caption` is a list that does not hold texts only")
            found.unused.note(entry, f"{file.name}, [{number}]", ("image", "caption", "image_id"))
            other, captions = pictures.setdefault(image_id, (name, []))
            if other != name:
                raise BadEntry(f"image id {image_id} belongs to {other}, too, not only to {name}", ID_TWICE)
        except BadEntry as error:
            found.lose(error.reason, f"{file.name}, [{number}]: {error}", _length(entry, "caption") or 1)
            continue
        for text in texts:
            captions_so_far += 1
            captions.append((captions_so_far, text))
    for image_id, (name, captions) in pictures.items():
        found.add(split, image_id, name, captions, f"{file.name}, image {image_id}")


def _length(entry: Any, name: str) -> int:
    value = entry.get(name) if isinstance(entry, dict) else None
    return len(value) if isinstance(value, list) else 0
