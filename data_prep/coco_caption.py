"""Checks captions in any public layout and writes them as JSON lines: python -m data_prep.coco_caption."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep.checks import Check, Entry, Split, path_below
from data_prep.command import options, run
from mmadapter.data.readers.caption_shards import shard_files
from mmadapter.data.readers.caption_table import LISTS, TABLES, table_files
from mmadapter.data.readers.captions import CaptionFiles
from mmadapter.data.readers.coco import REAL_SIZES, SPLITS, coco_files, is_coco_name
from mmadapter.data.readers.llava_pretrain import pretrain_files
from mmadapter.errors import InputError

KINDS = (
    "COCO (dataset_coco.json; coco_karpathy_*.json; captions_*.json with karpathy_*_images.txt or alone), "
    "YAML lists of url<TAB>caption tables, LLaVA-Pretrain's JSON, webdataset shards *.tar"
)
COCO_NAMES = ("dataset_coco.json", "coco_karpathy_*.json", "captions_*.json", *(f"{split}.jsonl" for split in SPLITS))
PEEK = 1 << 16


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where the data is sound (or every loss was asked for), 1 where it is not, 2 where it cannot be read."""
    about = f"Checks captions and their pictures: {KINDS}. With --out: references in COCO's layout, too."
    parser = options("coco_caption", about, "folder of the pictures, and of the captions if not --input")
    parser.add_argument(
        "--input", type=Path, help="the file of captions (shards: a folder) where it is not found by name"
    )
    parser.add_argument(
        "--split-lists", type=Path, help="folder of karpathy_{val,test}_images.txt, if not beside the captions"
    )
    parser.add_argument(
        "--instruction",
        choices=("own", "caption"),
        default="own",
        help="LLaVA's dialogs: keep each one's question (default), or drop it for the caption instruction",
    )
    return run(parser, arguments, examine, _line, _references)


def examine(settings: argparse.Namespace) -> Check:
    """Reads the captions of all splits and finds all that is wrong with them and their pictures."""
    found = _caption_files(settings)
    root = found.folders.root
    check = Check(f"Captions: {found.what}, pictures below {root}", root, found.files, defects=found.defects)
    for name in sorted(found.splits, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)):
        check.splits[name] = Split(
            [Entry((name, one.image_id), one.where, one, one.image, len(one.captions)) for one in found.splits[name]]
        )
    check.facts["captions read"] = found.captions_read
    check.notes += [f"{count:,} {what} are ignored" for what, count in found.ignored.items()]
    got = {
        name: (len(split.entries), sum(one.captions for one in split.entries)) for name, split in check.splits.items()
    }
    named = [split.entries[0].item.image.name for split in check.splits.values() if split.entries]
    if all(map(is_coco_name, named)) and got != {name: REAL_SIZES[name] for name in got if name in REAL_SIZES}:
        sizes = ", ".join(f"{name} {pictures:,} ({captions:,})" for name, (pictures, captions) in REAL_SIZES.items())
        check.notes.append(f"not COCO by Karpathy's splits, whose pictures (captions) are: {sizes}")

    # A picture in two splits, by id or by file; then --limit, which counts what can be used.
    check.find_in_two_splits(list(check.splits), lambda one: (one.item.image_id, one.image))
    if settings.limit is not None:
        beyond = 0
        for name, split in check.splits.items():
            left_out = {one.key for one in list(check.sound(name))[settings.limit :]}
            beyond += sum(one.captions for one in split.entries if one.key in left_out)
            split.entries = [one for one in split.entries if one.key not in left_out]
        check.facts["captions beyond the limit"] = beyond
        check.notes.append(f"{beyond:,} captions lie beyond the limit of {settings.limit:,} pictures a split")

    entries = [one for split in check.splits.values() for one in split.entries]
    repeated = [one.where for one in entries if len({text for _, text in one.item.captions}) < one.captions]
    if repeated:
        first = "; ".join(repeated[:5])
        check.notes.append(f"pictures that have the same caption twice: {len(repeated):,} (kept), the first: {first}")
    if settings.check == "none":
        check.facts["pictures decoded"] = 0
        check.notes.append("pictures were not looked for (--check none)")
    else:
        check.find_bad_pictures(settings.check, settings.workers)
        check.note_unnamed_pictures(found.folders.listings())
    check.settle(settings.on_bad == "skip")

    # Every caption of the files is kept, or something says why not.
    explained = sum(one.captions for one in entries) + found.defects.captions.total()
    if lost := found.captions_read - explained - check.facts.get("captions beyond the limit", 0):
        check.failures.append(f"{lost:,} captions are lost and nothing says why")
    return check


def _caption_files(settings: argparse.Namespace) -> CaptionFiles:
    """What the folder, or the file that --input names, holds: all splits. Raises InputError for none of KINDS."""
    root: Path = settings.root
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder. --root is the folder of the pictures.")
    path: Path | None = settings.input
    if path is not None:
        path = next((file for file in (path, root / path) if file.exists()), path)
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder (--input).")
    place = path or _only_input(root)
    if place.is_dir() and any(place.glob("*.tar")) or place.suffix == ".tar":
        return shard_files(root, place if path else None, settings.limit)
    if path is not None and path.is_dir():
        raise InputError(
            f"{path}: there are no shards *.tar there; --input is a file of captions, or a folder of shards."
        )
    if place.suffix in LISTS + TABLES:
        return table_files(root, place)
    if place.is_file():
        with place.open("rb") as stream:
            begin = stream.read(PEEK).removeprefix(b"\xef\xbb\xbf").lstrip()
        if begin.startswith(b"[") and b'"conversations"' in begin:
            return pretrain_files(root, place, settings.instruction)
    return coco_files(root, path, settings.split_lists)


def _only_input(root: Path) -> Path:
    """The root itself for COCO and shards, else the only file of captions in it."""
    if any(any(folder.glob(name)) for folder in (root, root / "annotations") for name in COCO_NAMES):
        return root
    if any(root.glob("*.tar")):
        return root
    for endings in (LISTS, TABLES, (".json",)):
        files = sorted(file for file in root.glob("*") if file.suffix in endings)
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(file.name for file in files[:5])
            raise InputError(f"{root}: which file holds the captions: {names}? Name it with --input.")
    raise InputError(f"{root}: there are no captions that are known here. Read are: {KINDS}. Name one with --input.")


def _line(check: Check, entry: Entry) -> dict[str, Any]:
    picture = entry.item
    line: dict[str, Any] = {
        "image_id": picture.image_id,
        "image": path_below(picture.image, check.root),
        "captions": [{"id": number, "caption": text} for number, text in picture.captions],
    }
    return line if picture.instruction is None else {**line, "instruction": picture.instruction}


def _references(check: Check) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """captions_SPLIT.json in the official layout, which `pycocotools` reads, for all splits but train."""
    files: dict[str, Iterable[Mapping[str, Any]]] = {}
    for name, split in check.splits.items():
        kept = [one.item for one in split.kept]
        content = {
            "info": {"description": f"split {name} of {check.files[0].name}, whitespace collapsed"},
            "licenses": [],
            "type": "captions",
            "images": [{"id": one.image_id, "file_name": one.image.name} for one in kept],
            "annotations": [
                {"image_id": one.image_id, "id": number, "caption": text}
                for one in kept
                for number, text in one.captions
            ],
        }
        files |= {f"captions_{name}.json": [content]} if name != "train" else {}
    return files


if __name__ == "__main__":
    sys.exit(main())
