"""Captioned pictures in every public layout, a few of each, and what dirty captions look like."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

DIRTY = {
    " A dog\nruns. ": "A dog runs.",
    "tab\there\r": "tab here",
    "one\u2028two\x0bthree": "one two three",
    "carriage\rreturn": "carriage return",
    'He said "hi': 'He said "hi',
    "None": "None",
    "NA": "NA",
    "日本 café": "日本 café",
}


def save_picture(path: Path, colour: tuple[int, int, int] = (200, 0, 0)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)
    return path


def coco_name(number: int, folder: str = "val2014") -> str:
    return f"COCO_{folder}_{number:012d}.jpg"


def write_json(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def write_lavis(root: Path) -> Path:
    """Train: pictures 1 and 2 with a caption an entry; val: picture 3, test: picture 4, with a list each."""
    train = [(1, "a dog"), (2, "a cat"), (1, " the\ndog ")]
    entries = [{"image": f"val2014/{coco_name(n)}", "caption": c, "image_id": f"coco_{n}"} for n, c in train]
    write_json(root / "annotations/coco_karpathy_train.json", entries)
    for number, split in ((3, "val"), (4, "test")):
        entry = {"image": f"val2014/{coco_name(number)}", "caption": ["a hat", "the hat"]}
        write_json(root / f"annotations/coco_karpathy_{split}.json", [entry])
    for number in range(1, 5):
        save_picture(root / "val2014" / coco_name(number))
    return root


def write_official_with_lists(root: Path) -> Path:
    """Pictures 1 (train2014) and 2 to 5 (val2014), two captions each; 3 is listed for val, 4 for test."""
    for year, numbers in (("train2014", [1]), ("val2014", [2, 3, 4, 5])):
        content = {
            "images": [{"id": number, "file_name": coco_name(number, year)} for number in numbers],
            "annotations": [
                {"id": 10 * number + k, "image_id": number, "caption": f"caption {k} of {number}"}
                for number in numbers
                for k in (1, 2)
            ],
        }
        write_json(root / f"annotations/captions_{year}.json", content)
        for number in numbers:
            save_picture(root / year / coco_name(number, year))
    for number, split in ((3, "val"), (4, "test")):
        (root / f"karpathy_{split}_images.txt").write_text(f"val2014/{coco_name(number)} {number}\n")
    return root


def write_table(root: Path, lines: Sequence[str] = ("a.jpg\tone", "b.jpg\ttwo", "a.jpg\tthree")) -> Path:
    """list.yaml that names captions.csv, in the official V2's form."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "list.yaml").write_text("META:\n  - captions.csv\n")
    (root / "captions.csv").write_text("".join(f"{line}\n" for line in ["url\tcaption", *lines]), encoding="utf-8")
    for name in ("a.jpg", "b.jpg"):
        save_picture(root / name)
    return root


def dialog(number: int, question: str = "<image>\nWhat is this?", caption: str = "a red square") -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": caption}]
    return {"id": f"{number:09d}", "image": f"00000/{number:09d}.jpg", "conversations": turns}


def write_dialogs(root: Path, items: Sequence[Any] | None = None) -> Path:
    """chat.json and images/00000/, in LLaVA-Pretrain's form."""
    items = [dialog(1), dialog(2, "Describe it.\n<image>")] if items is None else items
    for number in (1, 2):
        save_picture(root / f"images/00000/{number:09d}.jpg")
    write_json(root / "chat.json", items)
    return root


def web_pair(key: str, caption: str | bytes = "a red square", **facts: Any) -> dict[str, bytes]:
    """The three files of one key, as img2dataset writes them."""
    picture = io.BytesIO()
    Image.new("RGB", (8, 8), (int(key[-2:]), 0, 0)).save(picture, "PNG")
    told = {"key": key, "status": "success", "error_message": None, "url": "http://x.invalid/1"} | facts
    text = caption if isinstance(caption, bytes) else caption.encode()
    return {f"{key}.jpg": picture.getvalue(), f"{key}.txt": text, f"{key}.json": json.dumps(told).encode()}


def write_shard(path: Path, *pairs: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for pair in pairs:
            for name, content in pair.items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def write_shards(root: Path) -> Path:
    """Two shards of two pictures each, with img2dataset's other files beside them."""
    for shard in (0, 1):
        keys = [f"{shard:05d}{number:04d}" for number in (0, 1)]
        write_shard(root / f"{shard:05d}.tar", *(web_pair(key, f"caption of {key}") for key in keys))
        (root / f"{shard:05d}.parquet").write_bytes(b"PAR1")
        (root / f"{shard:05d}_stats.json").write_text("{}")
    return root
