"""Which public layout of captions lies in a folder, told by names and by the first bytes of a file."""

from __future__ import annotations

from pathlib import Path

from mmadapter.data.readers.caption_shards import shard_files
from mmadapter.data.readers.caption_table import LISTS, TABLES, table_files
from mmadapter.data.readers.captions import CaptionFiles
from mmadapter.data.readers.coco import SPLITS, coco_files
from mmadapter.data.readers.llava_pretrain import llava_files
from mmadapter.errors import InputError

KINDS = (
    "COCO (dataset_coco.json; coco_karpathy_*.json; captions_*.json with karpathy_*_images.txt or alone), "
    "YAML lists of url<TAB>caption tables, LLaVA-Pretrain's JSON, webdataset shards *.tar"
)
COCO_NAMES = ("dataset_coco.json", "coco_karpathy_*.json", "captions_*.json", *(f"{split}.jsonl" for split in SPLITS))
PEEK = 1 << 16


def caption_input(
    root: Path, named: Path | None, split_lists: Path | None, instruction: str, limit: int | None
) -> CaptionFiles:
    """What the folder, or the file that is `named`, holds: all splits. Raises InputError where it is none of KINDS."""
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder. --root is the folder of the pictures.")
    path = None if named is None else next((file for file in (named, root / named) if file.exists()), named)
    if path is not None and not path.exists():
        raise InputError(f"{path}: there is no such file or folder (--input).")
    place = path or _only_input(root)
    if place.is_dir() and any(place.glob("*.tar")) or place.suffix == ".tar":
        return shard_files(root, place if path else None, limit)
    if path is not None and path.is_dir():
        raise InputError(
            f"{path}: there are no shards *.tar there; --input is a file of captions, or a folder of shards."
        )
    if place.suffix in LISTS + TABLES:
        return table_files(root, place)
    if place.is_file() and _is_dialogs(place):
        return llava_files(root, place, instruction)
    return coco_files(root, path, split_lists)


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


def _is_dialogs(file: Path) -> bool:
    with file.open("rb") as stream:
        begin = stream.read(PEEK)
    return begin.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[") and b'"conversations"' in begin
