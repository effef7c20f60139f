"""The user's own data, a file or a folder: its layout is recognised by its content, its splits are found or made.

The files are read once for training, validation and tasks. Each reading reports the layout, what is left out and why,
and which fields are not used.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mmadapter.data.readers import Purpose
from mmadapter.data.readers.captions import NOT_HERE
from mmadapter.data.readers.coco import FOLDERS as COCO_FOLDERS
from mmadapter.data.readers.coco import KARPATHY, coco_files
from mmadapter.data.readers.columns import Columns, captioned_item, column_layout
from mmadapter.data.readers.defects import Defects
from mmadapter.data.readers.instructions import item_samples, places_of_split
from mmadapter.data.readers.items import (
    ALPACA,
    BAD_ITEM,
    DIALOGS,
    MESSAGES,
    WEAK,
    InstructionFile,
    ItemLayout,
    ReadItem,
    parsed_items,
)
from mmadapter.data.readers.json_file import is_json_lines, read_json, read_json_lines
from mmadapter.data.readers.pictures import ImageFolders, is_outside, settle_missing_images
from mmadapter.data.readers.scienceqa import PUBLISHED, image_path, image_root, read_problems, read_splits
from mmadapter.data.readers.tables import TABLES, read_table
from mmadapter.data.samples import Sample
from mmadapter.data.settings import OWN, ColumnNames, OwnSettings
from mmadapter.errors import InputError, described
from mmadapter.vision.packed_images import picture_exists

log = logging.getLogger(__name__)
ENDINGS = (".json", ".jsonl", *TABLES)
# JSON files that hold no items
NO_DATA = ("dataset_info", "dataset_infos", "manifest", "package", "config", "pid_splits", "captions")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SPLITS = ("train", "val", "test")
SHARD = re.compile(r"-\d+(-of-\d+)?$")  # train-00000-of-00002
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
PROBLEMS = "problems.json"


@dataclass(frozen=True)
class Layout:
    """The layout that the data have."""

    name: str
    """of LAYOUTS"""
    line: str
    """for people: files, layout, items, pictures"""


@dataclass
class OwnData:
    """All usable items, each with the split that the files give it, and where to look for their pictures."""

    layout: Layout
    files: list[Path]
    items: list[ReadItem]
    folders: dict[Path, list[Path]]
    """file -> where its pictures are looked for, in this order"""
    defects: Defects
    notices: list[str] = field(default_factory=list)
    listed: dict[Path, ImageFolders] = field(default_factory=dict)
    """folder -> what is in it, once it was looked into"""
    within: Sequence[Path] | None = None
    """the folders that pictures lie below; None: anywhere"""

    def find(self, one: ReadItem, name: str) -> Path:
        """The path of an item's picture. Where no folder has it, it is a path in the first one, with no file there."""
        folders, leads_out = self.folders[one.file], ".." in name or os.path.isabs(name)
        places = []
        for folder in folders:
            found = self.listed.setdefault(folder, ImageFolders(folder)).find(name)
            if self.within is not None and leads_out and is_outside(str(found.absolute()), self.within):
                continue
            if found != folder / name or picture_exists(found):
                return found
            places.append(found)
        return places[0] if places else folders[0] / Path(name).name


def read_own(settings: OwnSettings, purpose: Purpose) -> list[Sample]:
    """The samples of one split, made by `item_samples`; meta["layout"] has the layout, too.

    Splits that the files give are used. Where they give no val, some items of train are held out (`places_of_split`).
    Raises InputError naming file and item for what cannot be used.
    """
    data = own_data(settings)
    chosen = of_split(data, settings)
    several = len(data.files) > 1
    samples = item_samples(chosen[: settings.limit], settings, purpose, data.find, several)
    samples = [replace(one, meta={**one.meta, "layout": data.layout.name}) for one in samples]
    return settle_missing_images(samples, settings.missing_image, str(settings.path))


def own_data(settings: OwnSettings) -> OwnData:
    """All items of the file or folder that the settings name. Raises InputError for bad ones, unless on_bad=skip."""
    place = Path(settings.path or settings.root or "")
    if not place.exists():
        raise InputError(f"{place}: no such file or folder. Check the path.")
    columns = tuple(sorted((role, name) for role, name in vars(settings.columns).items() if name is not None))
    ignore, may_leave = tuple(settings.ignore), settings.may_leave
    data = _read_once(place, settings.root, settings.layout, columns, ignore, may_leave, _state(place))
    remedy = "Fix them, or set on_bad=skip (they are left out and counted)."
    data.defects.settle(str(place), remedy, skip=settings.on_bad == "skip")
    if not data.items:
        reasons = "; ".join(data.defects.line(reason) for reason in data.defects.counts)
        raise InputError(f"{place}: no item can be used ({reasons or 'there is none'}).")
    log.info("%s", data.layout.line)
    for notice in data.notices:
        log.warning("%s", notice)
    return replace(data, listed={})  # look into the folders again: pictures may have been added since


def of_split(data: OwnData, settings: OwnSettings) -> list[ReadItem]:
    """The items of the split that is asked for. Raises InputError where there is none.

    Where some items name their split, those that name none belong to train.
    """
    what, split = settings.path or settings.root, settings.split
    if split == "all":
        return data.items
    parts: dict[str, list[ReadItem]] = {}
    for one in data.items:
        parts.setdefault(one.split or "train", []).append(one)
    has_splits = any(one.split is not None for one in data.items)
    if split in parts and (split != "train" or "val" in parts):
        return parts[split]
    if split == "test" or "train" not in parts:
        there = ", ".join(f"{name} ({len(parts[name]):,} items)" for name in SPLITS if name in parts)
        if not has_splits:
            there = "none of its own, so train and val are made of all items"
        raise InputError(
            f"{what}: there is no split {split!r}; there is: {there}. Set one of these (split=NAME), or split=all."
        )

    # No val of its own: some of train are split off.
    pool = parts["train"]
    places = places_of_split(
        [one.item.key for one in pool],
        split,
        settings.val_size,
        settings.val_fraction,
        lambda place: pool[place].item.whole,
        count_items=True,
    )
    if not 0 < len(places) < len(pool):
        raise InputError(
            f"{what}: {len(pool)} usable items cannot be split into train and val (equal items go to the same one). "
            f"Give it at least two different items, or train on all without a validation: {OWN}.split=all "
            "'~data.validation.own' 'evaluate=[]'"
        )
    return [pool[place] for place in places]


# What is there.


@lru_cache(maxsize=2)
def _read_once(
    place: Path,
    root: str | None,
    layout: str,
    columns: tuple[tuple[str, str], ...],
    ignore: tuple[str, ...],
    may_leave: bool,
    state: tuple[tuple[str, int, int], ...],
) -> OwnData:
    """What `collected` returns, kept so that training, validation and tasks read the files once.

    `state` is another one when a file has changed, so changed files are read again.
    """
    return collected(place, root, layout, ColumnNames(**dict(columns)), ignore, may_leave)


def _state(place: Path) -> tuple[tuple[str, int, int], ...]:
    """Names, sizes and times of the files that may hold data, by which changes are seen."""
    files = [place] if place.is_file() else sorted(_files_below(place))
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _files_below(folder: Path) -> Iterator[Path]:
    for below in ("", "data", "annotations", "data/scienceqa", "scienceqa", *SPLIT_NAMES):
        yield from (file for file in (folder / below).glob("*") if file.suffix.lower() in ENDINGS)


def collected(
    place: Path, root: str | None, layout: str, columns: ColumnNames, ignore: Sequence[str], may_leave: bool = False
) -> OwnData:
    """All items of a file or folder; bad ones are counted, not yet refused. Raises InputError for an unknown layout.

    Pictures lie below `root`, or below the place: the folder, or the file's folder (the one above `annotations`).
    Others are defects, unless they `may_leave` it.
    """
    problems = _problems_file(place)
    if layout == "scienceqa" or (layout == "auto" and problems is not None):
        return _scienceqa(place, problems, root, columns, ignore, may_leave)
    if layout == "coco" or (layout == "auto" and _is_coco(place)):
        return _coco(place, root, may_leave)
    contents = [(file, split or own, items) for file, split in _sources(place) for own, items in _lists(file)]
    there = _fields(items for *_, items in contents)
    what = str(place)
    if not there:
        first = next((one for *_, items in contents for one in items), None)
        got = "" if first is None else f"; the first entry is {described(first)}"
        raise InputError(f"{what}: there is no item (an object with fields) in it{got}.")
    name, item_layout = _layout(layout, Columns(there, columns, what), there, what)
    split_field = columns.split or next((one for one in there if one.lower() == "split"), None)

    files = list(dict.fromkeys(file for file, *_ in contents))
    roots = _roots(place, root)
    folders = _folders(root, files, None if may_leave else roots)
    data = OwnData(Layout(name, ""), files, [], folders, Defects(harmless=WEAK))
    data.within = None if may_leave else [*roots, *dict.fromkeys(file.parent for file in files)]
    for file, split, items in contents:
        also = ("id", split_field) if split_field is not None and split is None else ("id",)
        found = parsed_items(file, items, item_layout, ignore, also)
        if not may_leave:
            found.leave_out_outside([*roots, file.parent])
        if split is not None:
            found.items = [replace(one, split=split) for one in found.items]
        elif split_field is not None:
            found.items = list(_with_splits(found, items, split_field))
        data.items += found.items
        data.defects.update(found.defects)
        data.notices += found.notices()
    if name == "captions":  # a picture may have several rows, one for each caption
        data.items = _captions_together(data.items)
    if name == "sharegpt" and any(one.item.image for one in data.items):
        name = "llava"
    return _with_line(data, place, name)


def _layout(layout: str, columns: Columns, there: Sequence[str], what: str) -> tuple[str, ItemLayout]:
    """The layout of items with these fields, or the one that is set."""
    listed = [name for name in ("conversations", "messages") if name in there]
    if layout == "auto":
        if len(listed) > 1:
            told = "items have `conversations` and `messages`"
            raise InputError(f"{what}: {told}. Say which are the turns: layout=sharegpt or layout=messages")
        if listed:
            layout = "messages" if listed[0] == "messages" else "sharegpt"
        elif {"instruction", "output"} <= set(there) and not columns.found["choices"] and not columns.are_named:
            layout = "alpaca"
        else:
            layout = columns.layout() or ""
    known = {"alpaca": ALPACA, "sharegpt": DIALOGS, "llava": DIALOGS, "messages": MESSAGES}
    if layout in known:
        return layout, known[layout]
    if not layout and {"chosen", "rejected"} <= set(there):
        raise InputError(
            f"{what}: `chosen` and `rejected` are preferences between answers, which cannot be learned. To learn what "
            "was chosen as the answer: columns.answer=chosen ignore=[rejected]"
        )
    if not layout:
        raise InputError(
            f"{what}: no layout is recognised. The fields are: {', '.join(map(str, there[:20]))}. Expected are "
            "`conversations`, `messages`, `instruction` and `output`, or a question and an answer; if these have other "
            "names, say so: columns.question=NAME columns.answer=NAME columns.image=NAME (or columns.caption=NAME). "
            "The first line of a table must hold the names."
        )
    return layout, column_layout(layout, columns)


def _with_splits(found: InstructionFile, raw: Sequence[Any], split_field: str) -> Iterator[ReadItem]:
    """The items with the split that their own field says; another name than a split's is a defect."""
    for one in found.items:
        said = raw[one.number].get(split_field)
        if said is None or said == "":
            yield one
        elif (split := SPLIT_NAMES.get(str(said).strip().lower())) is not None:
            yield replace(one, split=split)
        else:
            told = f"`{split_field}` is {described(said)}; allowed are train, val (validation, dev) and test"
            found.defects.add(BAD_ITEM, f"{one.where}: {told}")


def _captions_together(items: Sequence[ReadItem]) -> list[ReadItem]:
    """One item a picture: captions in several rows of one picture are its captions."""
    pictures: dict[tuple[Path, str | None, str | None], ReadItem] = {}
    texts: dict[tuple[Path, str | None, str | None], list[str]] = {}
    for one in items:
        place = (one.file.parent, one.split, one.item.image)
        pictures.setdefault(place, one)
        texts.setdefault(place, []).extend(one.item.references)
    return [
        replace(one, item=captioned_item(one.item.image or "", list(dict.fromkeys(texts[place]))))
        for place, one in pictures.items()
    ]


def _with_line(data: OwnData, place: Path, name: str) -> OwnData:
    """The data, with the line that describes them and a notice of files that were not read."""
    titles = {
        "alpaca": "Alpaca instructions",
        "sharegpt": "ShareGPT dialogs",
        "llava": "LLaVA dialogs",
        "messages": "OpenAI messages",
        "question_answer": "questions and answers",
        "multiple_choice": "multiple-choice questions",
        "captions": "captioned pictures",
        "coco": "COCO captions",
        "scienceqa": "ScienceQA questions",
    }
    parts = [f"{place.name or place}: {titles[name]}", f"{len(data.items):,} items"]
    splits = Counter(one.split for one in data.items)
    if set(splits) - {None}:
        parts.append("splits " + ", ".join(f"{split} {splits[split]:,}" for split in (*SPLITS, None) if splits[split]))
    named = [data.find(one, one.item.image) for one in data.items if one.item.image is not None]
    if named:
        above = Path(os.path.commonpath([str(one.parent) for one in named]))
        base = place if place.is_dir() else place.parent
        shown = f"{os.path.relpath(above, base)}/" if above.is_relative_to(base) else str(above)
        count = "" if len(named) == len(data.items) else f"{len(named):,} with "
        parts.append(f"{count}pictures in {'./' if shown == './' else shown}")
    data.layout = Layout(name, ", ".join(parts))
    data.notices += _unread(place, data.files)
    return data


# Where the items are.


def _sources(place: Path) -> list[tuple[Path, str | None]]:
    """The files with items, each with the split that its name, or its folder's, says."""
    if place.is_file():
        if place.suffix.lower() not in ENDINGS:
            raise InputError(
                f"{place}: one's own data are a folder or a file {', '.join(ENDINGS)}. Save a table as CSV, and items "
                "as JSON lines."
            )
        return [(place, None)]
    metadata = [
        (place / below / name, SPLIT_NAMES.get(below))
        for below in ("", *SPLIT_NAMES)
        for name in METADATA
        if (place / below / name).is_file()
    ]
    if metadata:
        return metadata
    for folder in (place, place / "data"):
        found = sorted(file for file in folder.glob("*") if file.suffix.lower() in ENDINGS and file.stem not in NO_DATA)
        named: dict[str, list[Path]] = {}
        for file in found:
            if (split := _split_of_name(file.stem)) is not None:
                named.setdefault(split, []).append(file)
        for split, files in named.items():
            if len(files) > 1 and not all(SHARD.search(file.stem) for file in files):
                names = ", ".join(file.name for file in files)
                raise InputError(
                    f"{folder}: {len(files)} files say that they are {split}: {names}. Name one: path=FILE"
                )
        if named:
            return [(file, split) for split, files in named.items() for file in files]
        if len(found) == 1 or (found and all(SHARD.search(file.stem) for file in found)):
            return [(file, None) for file in found]
        if found:
            names = ", ".join(file.name for file in found[:5])
            raise InputError(
                f"{folder}: there are {len(found)} files ({names}), of which none is named train. Name one: path=FILE, "
                "or call them train, val and test."
            )
    raise InputError(
        f"{place}: there is no file *{', *'.join(ENDINGS)} in this folder, nor in data/. A folder of pictures has "
        "their texts in metadata.csv or metadata.jsonl, with the fields file_name and text."
    )


def _unread(place: Path, read: Sequence[Path]) -> Iterator[str]:
    """A line that names the other files of the folder that might hold data, too."""
    if place.is_dir():
        names = [
            file.name
            for file in sorted(place.glob("*"))
            if file.suffix.lower() in ENDINGS and file not in read and file.stem not in NO_DATA
        ]
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            yield f"{place}: not read are {', '.join(names[:5])}{more}. To read one, name it, not the folder."


def _split_of_name(stem: str) -> str | None:
    """train of train, train-00000-of-00002, my_train, llava_train; None where the name says no split, or two."""
    words = {SPLIT_NAMES[word] for word in re.split(r"[^a-z]+", stem.lower()) if word in SPLIT_NAMES}
    return words.pop() if len(words) == 1 else None


def _lists(file: Path) -> Iterable[tuple[str | None, list[Any]]]:
    """(split, items) of a file: a list, an object with `data`, or one with a list for each split."""
    if file.suffix.lower() in TABLES:
        return [(None, read_table(file))]
    if is_json_lines(file):
        return [(None, read_json_lines(file))]
    content = read_json(file)
    if isinstance(content, list):
        return [(None, content)]
    if isinstance(content, dict):
        lists = {name: value for name, value in content.items() if isinstance(value, list)}
        if set(lists) and all(name in SPLIT_NAMES for name in lists):
            return [(SPLIT_NAMES[name], items) for name, items in lists.items()]
        if "data" in lists:
            return [(None, lists["data"])]
        if content and all(isinstance(value, dict) for value in content.values()):
            return [(None, [{"id": name, **value} for name, value in content.items()])]
    got = f"an object with {', '.join(map(str, content))[:80]}" if isinstance(content, dict) else described(content)
    raise InputError(f"{file}: expected a list of items, or an object with such a list as `data`; got {got}.")


def _fields(lists: Iterable[Sequence[Any]]) -> list[str]:
    """The names of all fields that items have, in the order in which they come."""
    return list(dict.fromkeys(name for items in lists for one in items if isinstance(one, dict) for name in one))


def _roots(place: Path, root: str | None) -> list[Path]:
    """The folders that pictures must lie below: the root that is set, and what the data's own folder is."""
    own = place if place.is_dir() else place.parent
    if place.is_file() and own.name == "annotations":
        own = own.parent
    return [own] if root is None else [Path(root), own]


def _folders(root: str | None, files: Sequence[Path], within: Sequence[Path] | None) -> dict[Path, list[Path]]:
    """Where pictures are looked for: the root that is set, beside the file, in a folder of its name, above.

    `within`: only in folders below one of these.
    """
    above = [] if root is None else [Path(root)]
    found = {file: [*above, file.parent, file.parent / file.stem, file.parent.parent] for file in files}
    if within is None:
        return found
    return {
        file: [one for one in folders if not is_outside(str(one.absolute()), within)] for file, folders in found.items()
    }


# Layouts that have readers of their own.


def _is_coco(place: Path) -> bool:
    """Whether a folder has COCO's files, or a file COCO's content: `images` with sentences, or with annotations."""
    if place.is_file():
        if place.suffix.lower() != ".json" or is_json_lines(place):
            return False
        with place.open("rb") as opened:  # only an object can be COCO's: do not read a large list for nothing
            if not opened.read(4096).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
                return False
        content = read_json(place)
        images = content.get("images") if isinstance(content, dict) else None
        return isinstance(images, list) and (
            isinstance(content.get("annotations"), list)
            or any(isinstance(one, dict) and "sentences" in one for one in images[:1])
        )
    patterns = (KARPATHY, "captions_*.json", "coco_karpathy_*.json")
    return any(next((place / folder).glob(pattern), None) for folder in COCO_FOLDERS for pattern in patterns)


def _coco(place: Path, root: str | None, may_leave: bool) -> OwnData:
    """COCO's captions, all splits, in any layout that `reader: coco_captions` knows; one item a picture."""
    beside = place if place.is_dir() else place.parent
    if place.is_file() and beside.name == "annotations":  # pictures stand beside the folder of the annotations
        beside = beside.parent
    folder = beside if root is None else Path(root)
    found = coco_files(folder, place if place.is_file() else None, None, may_leave=may_leave)
    if not found.splits and place.is_dir():
        raise InputError(f"{place}: no picture with a caption is there.")
    has_splits = found.has_splits or len(found.splits) > 1 or place.is_dir()
    data = OwnData(Layout("coco", ""), found.files, [], {found.files[0]: [folder]}, found.defects)
    data.defects.harmless = [*found.defects.harmless, NOT_HERE]
    data.notices += found.unused.notice(found.what)
    for split, pictures in found.splits.items():
        for number, one in enumerate(pictures):
            image = os.path.relpath(one.image, folder)
            item = captioned_item(image, [text for _, text in one.captions])
            own = SPLIT_NAMES.get(split) if has_splits else None
            data.items.append(ReadItem(found.files[0], number, one.image_id, item, own, one.where))
    return _with_line(data, place, "coco")


def _problems_file(place: Path) -> Path | None:
    """ScienceQA's problems.json, where `place` is that file or a folder that holds it."""
    if place.is_file():
        return place if place.name == PROBLEMS else None
    folders = ("", "data/scienceqa", "scienceqa", "data")
    return next((file for folder in folders if (file := place / folder / PROBLEMS).is_file()), None)


def _scienceqa(
    place: Path,
    problems: Path | None,
    root: str | None,
    columns: ColumnNames,
    ignore: Sequence[str],
    may_leave: bool,
) -> OwnData:
    """Questions as ScienceQA has them; only question, choices and answer must be there."""
    file = problems if problems is not None else place
    content = read_problems(file)
    folder = image_root(Path(root) if root is not None else place, file)
    splits: Mapping[str, Sequence[str]] = {}
    if (listed := file.parent / "pid_splits.json").is_file():
        splits = read_splits(listed)
    split_of = {pid: split for split in SPLITS for pid in splits.get(split, ())}
    entries, ids = [], []
    for pid, problem in content.items():
        if not isinstance(problem, dict):
            raise InputError(f"{file}, question {pid}: expected an object, got {described(problem)}.")
        ids.append(pid)
        own = split_of.get(pid) or problem.get("split")
        image = problem.get("image")
        if isinstance(image, str) and (path := image_path(folder, pid, problem)) is not None and path.is_file():
            image = os.path.relpath(path, file.parent)
        entries.append({**problem, "id": pid, "image": image, "split": own})
    there = _fields([entries])
    layout = column_layout("multiple_choice", Columns(there, columns, str(file)))
    found = parsed_items(file, entries, layout, ignore, ("id", "split", "subject", "grade", "topic", *PUBLISHED))
    if not may_leave:
        found.leave_out_outside([*_roots(place, root), file.parent, folder])
    found.items = list(_with_splits(found, entries, "split"))
    folders = {file: [*([] if root is None else [Path(root)]), file.parent, folder]}
    data = OwnData(Layout("scienceqa", ""), [file], found.items, folders, found.defects, list(found.notices()))
    return _with_line(data, place, "scienceqa")
