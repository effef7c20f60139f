"""COCO captions in the public layouts: Karpathy's, LAVIS's, the official one with or without split lists, and ours."""

from __future__ import annotations

import logging
from pathlib import Path

from mmadapter.data.readers import Purpose
from mmadapter.data.readers import coco_layouts as layouts
from mmadapter.data.readers.captions import CaptionFiles, caption_samples
from mmadapter.data.readers.json_file import collection_paused, read_json, read_json_lines
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.data.samples import Sample
from mmadapter.data.settings import CocoSettings
from mmadapter.errors import InputError

log = logging.getLogger(__name__)
FOLDERS = ("", "annotations")
KARPATHY = "dataset_coco.json"
LAVIS = "coco_karpathy_{}.json"
SPLITS = ("train", "val", "test")
SPLIT_LIST = "karpathy_{}_images.txt"
UNUSED = ("tokens", "sentids")  # most of dataset_coco.json's size
OFFICIAL_YEARS = ("2014", "2017")
# Karpathy's splits: pictures and captions (train has restval in it).
REAL_SIZES = {"train": (113_287, 566_747), "val": (5_000, 25_010), "test": (5_000, 25_010)}


def read_coco_captions(settings: CocoSettings, purpose: Purpose) -> list[Sample]:
    """The captioned pictures of one split as samples (see `caption_samples`).

    Looked for under the root, or named by `path`: dataset_coco.json, whose split `train` means train + restval;
    coco_karpathy_{split}.json; the official captions_{train,val}2014.json with Karpathy's lists of pictures
    (`split_lists` names their folder), where `train` is all that is in no list; captions_{split}*.json alone;
    {split}.jsonl as data_prep.coco_caption writes it.
    """
    assert settings.root is not None
    found = coco_files(Path(settings.root), settings.path, settings.split_lists, settings.split)
    samples = caption_samples(found, settings, purpose, settings.captions_per_image)
    for line in other_sizes(found):
        log.warning("%s: %s", found.what, line)
    return samples


@collection_paused()
def coco_files(
    root: Path, path: str | Path | None, split_lists: str | Path | None, only: str | None = None
) -> CaptionFiles:
    """All splits that are there, or `only` one of them. Raises InputError where no layout is recognised."""
    if root.is_file():
        root, path = (root.parent.parent if root.parent.name == "annotations" else root.parent), root
    file = _find(root, KARPATHY)
    if path is not None:
        file = next((file for file in (root / path, Path(path)) if file.is_file()), Path(path))
    if file is not None:
        found = CaptionFiles([file], ImageFolders(root))
        _read_file(found, file, split_lists, only)
        return found
    wanted = SPLITS if only is None else (only,)
    for pattern, read in ((LAVIS, layouts.lavis), ("{}.jsonl", layouts.own)):
        files = {split: file for split in wanted if (file := _find(root, pattern.format(split))) is not None}
        if files:
            found = CaptionFiles(list(files.values()), ImageFolders(root))
            for split, one in files.items():
                read(found, one, read_json_lines(one) if one.suffix == ".jsonl" else read_json(one), split)
            return found
    return _official(root, split_lists, only)


def scored_captions(file: Path, split: str) -> CaptionFiles:
    """What one file has of a split (all of it, where it knows none), word for word, as answers are scored against it.

    Raises InputError naming every place of the file that cannot be used.
    """
    found = CaptionFiles([file], ImageFolders(file.parent), verbatim=True)
    found.defects.harmless = ()
    _read_file(found, file, None, split)
    found.defects.settle(str(file), "Check task.annotations.")
    return found


def other_sizes(found: CaptionFiles) -> list[str]:
    """A line for each split that has COCO's names and about its size, but not Karpathy's exact counts.

    A made-up world of a few thousand pictures is not meant, nor are files of ours, whose manifest says what is missing.
    """
    lines: list[str] = []
    if any(file.suffix == ".jsonl" for file in found.files):
        return lines
    for split, pictures in found.splits.items():
        got = (len(pictures), sum(len(picture.captions) for picture in pictures))
        wanted = REAL_SIZES.get(split, got)
        if got != wanted and got[0] >= wanted[0] / 2 and layouts.is_coco_name(pictures[0].image.name):
            lines.append(
                f"split {split} has {got[0]:,} pictures and {got[1]:,} captions; "
                f"Karpathy's has {wanted[0]:,} and {wanted[1]:,}. Is the download whole?"
            )
    return lines


def _find(root: Path, name: str) -> Path | None:
    return next((root / folder / name for folder in FOLDERS if (root / folder / name).is_file()), None)


def _read_file(found: CaptionFiles, file: Path, split_lists: str | Path | None, only: str | None) -> None:
    """A file whose content says which layout it is of; where it has no splits, it is the split that is asked for."""
    split = only or next((split for split in SPLITS if split in file.stem), "train")
    if file.suffix == ".jsonl":
        layouts.own(found, file, read_json_lines(file), split)
        return
    content = read_json(file, without=UNUSED)
    if isinstance(content, list):
        layouts.lavis(found, file, content, split)
    elif not isinstance(content, dict) or not isinstance(content.get("images"), list):
        raise InputError(f"{file}: expected an object with a list `images`; is this a COCO caption file?")
    elif isinstance(content.get("annotations"), list):
        lists = {} if split_lists is None else _split_lists(found.folders.root, split_lists, found)
        layouts.official(found, [(file, content)], lists, split)
    else:
        if only is not None and only not in layouts.KARPATHY_SPLITS:
            allowed = ", ".join(layouts.KARPATHY_SPLITS)
            raise InputError(f"{file}: there is no split {only!r}; allowed: {allowed}.")
        found.has_splits = True
        layouts.karpathy(found, file, content["images"], only)


def _official(root: Path, split_lists: str | Path | None, only: str | None) -> CaptionFiles:
    found = CaptionFiles([], ImageFolders(root))
    lists = _split_lists(root, split_lists, found)
    if not lists:
        return _official_splits(root, only)
    years = {year: _years_files(root, year) for year in OFFICIAL_YEARS}
    there = [files for files in years.values() if files]
    if len(there) != 1:
        got = "files of both years" if there else "none"
        raise InputError(
            f"{root}: with {SPLIT_LIST.format('val')} there, captions_train2014.json and captions_val2014.json (or "
            f"those of 2017) are expected there or in its folder annotations; found {got}. Name one file with `path`."
        )
    if only is not None and only not in SPLITS:
        raise InputError(f"{root}: there is no split {only!r}; allowed: {', '.join(SPLITS)}.")
    if only == "train" and set(lists) != set(layouts.LISTED):
        raise InputError(
            f"{root}: split train is what stands in neither list of pictures, but there is only "
            f"{', '.join(SPLIT_LIST.format(split) for split in lists)}. Put the other list beside it."
        )
    found.files = there[0] + found.files
    layouts.official(found, [(file, read_json(file)) for file in there[0]], lists, only)
    return found


def _official_splits(root: Path, only: str | None) -> CaptionFiles:
    """captions_{split}*.json for one split, or for every split that has exactly one."""
    wanted = SPLITS if only is None else (only,)
    files: dict[str, Path] = {}
    for split in wanted:
        here = sorted(file for folder in FOLDERS for file in (root / folder).glob(f"captions_{split}*.json"))
        if len(here) == 1:
            files[split] = here[0]
        elif here or (split == wanted[-1] and not files):
            got = f"found {', '.join(file.name for file in here)}" if here else "found neither"
            raise InputError(
                f"{root}: expected {KARPATHY} or one captions_{split}*.json there or in its folder annotations (or "
                f"{LAVIS.format(split)}, {split}.jsonl); {got}. Check the data root and the split, or name the file "
                "with `path`."
            )
    found = CaptionFiles(list(files.values()), ImageFolders(root))
    for split, path in files.items():
        layouts.official(found, [(path, read_json(path))], {}, split)
    return found


def _years_files(root: Path, year: str) -> list[Path]:
    names = [f"captions_{split}{year}.json" for split in ("train", "val")]
    return [file for name in names if (file := _find(root, name)) is not None]


def _split_lists(root: Path, folder: str | Path | None, found: CaptionFiles) -> dict[str, set[int]]:
    """The ids in karpathy_val_images.txt and karpathy_test_images.txt, of those that are there."""
    if folder is not None:
        places = [path for path in (root / folder, Path(folder)) if path.is_dir()] or [Path(folder)]
    else:
        places = [root / folder for folder in FOLDERS]
    lists: dict[str, set[int]] = {}
    for split in layouts.LISTED:
        file = next((file for place in places if (file := place / SPLIT_LIST.format(split)).is_file()), None)
        if file is not None:
            lists[split] = layouts.listed_ids(file)
            found.files.append(file)
    if folder is not None and not lists:
        raise InputError(f"split_lists={folder}: there is no {SPLIT_LIST.format('val')} and no test list there.")
    if both := set.intersection(*lists.values()) if len(lists) == 2 else set():
        raise InputError(f"{places[0]}: picture {min(both)} stands in the val list and in the test list.")
    return lists
