"""Checks captions in any public layout and writes them as JSON lines: mmadapter check coco_caption."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from data_prep.checks import Check, Entry, path_below
from data_prep.command import options, run
from mmadapter.data.readers.caption_shards import shard_files
from mmadapter.data.readers.caption_table import LISTS, TABLES, table_files
from mmadapter.data.readers.captions import CaptionFiles
from mmadapter.data.readers.coco import REAL_SIZES, coco_files
from mmadapter.data.readers.llava_pretrain import pretrain_files
from mmadapter.data.readers.pictures import ImageFolders
from mmadapter.errors import InputError

KINDS = (
    "COCO (dataset_coco.json; coco_karpathy_*.json; captions_*.json with karpathy_*_images.txt or alone), "
    "YAML lists of url<TAB>caption tables, LLaVA-Pretrain's JSON, webdataset shards *.tar"
)
COCO_NAMES = ("dataset_coco.json", "coco_karpathy_*.json", "captions_*.json", "train.jsonl", "val.jsonl", "test.jsonl")
PEEK = 1 << 16


def main(arguments: list[str] | None = None) -> int:
    """The command line; see `run` for the exit codes."""
    about = f"Checks captions and their pictures: {KINDS}. With --out: references in COCO's layout, too."
    parser = options("coco_caption", about, "folder of the pictures, and of the captions if not --path")
    parser.add_argument("--path", type=Path, help="file of captions (shards: a folder), if it is not the only one")
    parser.add_argument(
        "--split-lists", type=Path, help="folder of karpathy_{val,test}_images.txt, if not beside the captions"
    )
    parser.add_argument(
        "--instruction",
        choices=("own", "caption"),
        default="own",
        help="LLaVA's dialogs: keep each one's question (default), or drop it for the caption instruction",
    )
    return run(parser, arguments, read, references)


def read(settings: argparse.Namespace) -> Check:
    """The captioned pictures of all splits, and what is wrong with the others."""
    if settings.missing_image == "no_image":
        raise InputError("--missing-image no_image: captions are nothing without their picture. Allowed: error, skip.")
    found = _caption_files(settings)
    root = found.folders.root
    check = Check(f"Captions: {found.what}, pictures below {root}", root, found.files, found.defects)
    check.defects.harmless = ()
    check.facts["captions read"] = found.captions_read
    check.notes += [f"{count:,} {what} are ignored" for what, count in found.ignored.items()]
    check.notes += found.unused.notice(found.what)
    repeated, other_sizes = [], []
    for name, pictures in found.splits.items():
        check.splits[name] = []
        for one in pictures:
            line: dict[str, Any] = {
                "image_id": one.image_id,
                "image": path_below(one.image, root),
                "captions": [{"id": number, "caption": text} for number, text in one.captions],
            }
            if one.instruction is not None:
                line["instruction"] = one.instruction
            if one.attributes is not None:
                line["attributes"] = one.attributes
            check.splits[name].append(Entry(one.where, line, one.image, (one.image_id, one.image)))
            if len({text for _, text in one.captions}) < len(one.captions):
                repeated.append(one.where)
        size = (len(pictures), sum(len(one.captions) for one in pictures))
        wanted = REAL_SIZES.get(name, size)
        if size != wanted and ImageFolders.COCO.fullmatch(pictures[0].image.name):
            other_sizes.append(f"{name} {wanted[0]:,} ({wanted[1]:,})")
    if other_sizes:
        check.notes.append(f"not COCO by Karpathy's splits, whose pictures (captions) are: {', '.join(other_sizes)}")
    if repeated:
        first = "; ".join(repeated[:5])
        check.repetitions.append(f"pictures that have the same caption twice: {len(repeated):,}, the first: {first}")
    return check


def _caption_files(settings: argparse.Namespace) -> CaptionFiles:
    """What the folder, or the file that --path names, holds: all splits. Raises InputError for none of KINDS."""
    root: Path = settings.root
    path: Path | None = settings.path
    may_leave: bool = settings.pictures_anywhere
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder. --root is the folder of the pictures.")
    if path is None and any(any(folder.glob(name)) for folder in (root, root / "annotations") for name in COCO_NAMES):
        return coco_files(root, None, settings.split_lists, may_leave=may_leave)
    if path is not None:
        path = next((file for file in (path, root / path) if file.exists()), path)
        if not path.exists():
            raise InputError(f"{path}: there is no such file or folder (--path).")
    elif not any(root.glob("*.tar")):
        files: list[Path] = []
        for endings in (LISTS, TABLES, (".json",)):  # a list of tables before the tables that it names
            files = files or sorted(file for file in root.glob("*") if file.suffix in endings)
        if len(files) != 1:
            names = ", ".join(file.name for file in files[:5]) or "none"
            raise InputError(f"{root}: expected one file of captions ({KINDS}); found {names}. Name it with --path.")
        path = files[0]
    if path is None or path.is_dir() or path.suffix == ".tar":
        return shard_files(root, path, settings.limit)
    if path.suffix in LISTS + TABLES:
        return table_files(root, path, may_leave)
    with path.open("rb") as stream:
        begin = stream.read(PEEK).removeprefix(b"\xef\xbb\xbf").lstrip()
    if begin.startswith(b"[") and b'"conversations"' in begin:
        return pretrain_files(root, path, settings.instruction, may_leave)
    return coco_files(root, path, settings.split_lists, may_leave=may_leave)


def references(check: Check) -> Mapping[str, Iterable[Mapping[str, Any]]]:
    """captions_SPLIT.json in the official layout, which `pycocotools` reads, for all splits but train."""
    files: dict[str, Iterable[Mapping[str, Any]]] = {}
    for name, kept in check.splits.items():
        content = {
            "info": {"description": f"split {name} of {check.files[0].name}, whitespace collapsed"},
            "licenses": [],
            "type": "captions",
            "images": [{"id": one.line["image_id"], "file_name": Path(one.line["image"]).name} for one in kept],
            "annotations": [
                {"image_id": one.line["image_id"], **caption} for one in kept for caption in one.line["captions"]
            ],
        }
        files |= {f"captions_{name}.json": [content]} if name != "train" else {}
    return files


if __name__ == "__main__":
    sys.exit(main())
