"""Small data sets in their publishers' layouts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image


def problem(**changes: Any) -> dict[str, Any]:
    """A sound ScienceQA question; a change to `...` takes the field out."""
    fields = {
        "question": "Which one is larger?",
        "choices": ["dog", "cat"],
        "answer": 0,
        "hint": "",
        "image": None,
        "task": "closed choice",
        "grade": "grade2",
        "subject": "natural science",
        "topic": "biology",
        "category": "Animals",
        "skill": "Compare animals",
        "lecture": "Look at\nboth.",
        "solution": "Dogs are larger.",
        "split": "train",
    } | changes
    return {name: value for name, value in fields.items() if value is not ...}


def write_scienceqa(folder: Path, problems: dict[str, Any] | None = None, splits: dict[str, Any] | None = None) -> Path:
    """Upstream's layout with 6 questions (train 3, val 1, test 2), two of them with a picture."""
    if problems is None:
        problems = {
            "1": problem(),
            "2": problem(hint="A dog and a cat stand there.", image="image.png"),
            "3": problem(answer=1, choices=["a", "b", "c"]),
            "4": problem(question="Is this so?", split="val"),
            "5": problem(question="Which is red?", split="test", image="image.png"),
            "6": problem(split="test", grade="grade12", subject="language science"),
        }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "problems.json").write_text(json.dumps(problems, indent=1))
    if splits is None:
        splits = {"train": [], "val": [], "test": []}
        for pid, one in problems.items():
            splits[one["split"]].append(pid)
    (folder / "pid_splits.json").write_text(json.dumps(splits))
    for pid, one in problems.items():
        if isinstance(one, dict) and one.get("image"):
            path = folder / "images" / one["split"] / pid / one["image"]
            path.parent.mkdir(parents=True)
            Image.new("RGB", (8, 8), (200, 0, 0)).save(path)
    return folder


def write_alpaca(file: Path, count: int = 40) -> Path:
    """Instructions, every second one with an input, every tenth with an empty output."""
    items = [
        {
            "instruction": f"Say {number}",
            "input": f"in {number}" if number % 2 else "",
            "output": "" if number % 10 == 5 else f"{number}",
        }
        for number in range(count)
    ]
    file.write_text(json.dumps(items))
    return file


def write_karpathy(root: Path) -> Path:
    """dataset_coco.json with one picture in each of train, restval, val and test, each with two captions."""
    images = []
    for number, split in enumerate(("train", "restval", "val", "test"), 1):
        name = f"COCO_val2014_{number:012d}.jpg"
        (root / "val2014").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(root / "val2014" / name)
        sentences = [
            {"raw": f" A dog\nnumber {number}. ", "sentid": 10 * number, "tokens": []},
            {"raw": 'The\u2028"dog"', "sentid": 10 * number + 1, "tokens": []},
        ]
        images.append(
            {"filepath": "val2014", "filename": name, "cocoid": number, "split": split, "sentences": sentences}
        )
    (root / "dataset_coco.json").write_text(json.dumps({"dataset": "coco", "images": images}))
    return root


def write_official_captions(root: Path) -> Path:
    """annotations/captions_train2017.json with two pictures, one of them without a caption of text."""
    content = {
        "images": [{"id": 7, "file_name": "000000000007.jpg"}, {"id": 8, "file_name": "000000000008.jpg"}],
        "annotations": [
            {"id": 1, "image_id": 7, "caption": "None"},
            {"id": 2, "image_id": 7, "caption": "a  cat\r"},
            {"id": 3, "image_id": 8, "caption": " \n"},
        ],
    }
    for folder in ("annotations", "train2017"):
        (root / folder).mkdir(parents=True)
    (root / "annotations" / "captions_train2017.json").write_text(json.dumps(content))
    for number in (7, 8, 9):
        Image.new("RGB", (8, 8)).save(root / "train2017" / f"{number:012d}.jpg")
    return root
