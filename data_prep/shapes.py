"""Write the made-up world in upstream layouts (ScienceQA, COCO, Alpaca): `python -m data_prep.shapes --out DIR`.

`short_captions.json`, in Karpathy's layout, names colour, shape and background of each captioned picture of one object,
and of the pictures of ScienceQA's train split. The three stand in `attributes`, too: captions are scored by them.
With `--interference` also what experiment=interference reads: `instructions.json` (language only, Alpaca's layout) and
`visual_instructions.json` with `pictures/` (open instructions about pictures that nothing is trained on); and
`told_captions.json` (captions asked for scenes that are told in words), which experiment=interference_told reads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from data_prep.command import exit_status
from data_prep.world.captions import captions, short_attributes, short_caption
from data_prep.world.instructions import (
    following_records,
    instruction_records,
    open_questions,
    told_caption_records,
)
from data_prep.world.questions import Problem, QuestionWriter, picture_caption
from data_prep.world.scenes import SIDE, Scene, draw, random_pair, random_scene
from mmadapter.files import new_folder

VERSION = 1
# What experiment=interference reads besides, and how much of it.
INTERFERENCE_FILES = ("instructions.json", "told_captions.json", "visual_instructions.json", "pictures")
FOLLOWING, TOLD_CAPTIONS, OPEN_PICTURES = 3600, 1700, 50
SCIENCEQA_IDS = 1_000_000  # plus the question's number is the id of its picture in short_captions.json: above COCO's


@dataclass(frozen=True)
class WorldSizes:
    """How much is made; questions by ScienceQA split, captioned pictures by Karpathy split."""

    train: int = 3000
    val: int = 300
    test: int = 420
    coco_train: int = 1500
    coco_restval: int = 200
    coco_val: int = 100
    coco_test: int = 100
    instructions: int = 1500
    picture_share: float = 0.65
    pair_share: float = 0.1


class PictureWriter:
    """Draws and saves pictures; no two pictures of a world are equal."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"pictures {seed}")
        self._seen: set[str] = set()

    def save(self, scene: Scene, path: Path) -> None:
        """Draw a scene to `path`; a picture that was drawn before is moved a little until it is new."""
        picture = draw(scene)
        while (digest := hashlib.sha256(picture.tobytes()).hexdigest()) in self._seen:
            shift = (self._rng.uniform(-2.5, 2.5), self._rng.uniform(-2.5, 2.5), self._rng.uniform(-0.08, 0.08))
            picture = draw(replace(scene, jitter=shift))
        self._seen.add(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".jpg":
            picture.save(path, quality=95, subsampling=0)
        else:
            picture.save(path, compress_level=4)


def make_world(out: Path, seed: int = 0, sizes: WorldSizes | None = None, interference: bool = False) -> None:
    """Write a whole world to `out`, which must not exist yet; it appears under its name only when it is complete."""
    sizes = sizes or WorldSizes()
    with new_folder(out) as folder:
        writer = PictureWriter(seed)
        manifest: dict[str, Any] = {"world": VERSION, "seed": seed, "sizes": asdict(sizes)}
        short: list[dict[str, Any]] = []
        manifest["scienceqa"] = _write_scienceqa(folder / "scienceqa", seed, sizes, writer, short)
        manifest["coco"] = _write_coco(folder / "coco", seed, sizes, writer, short)
        _write_json(folder / "short_captions.json", {"images": short, "dataset": "coco"})
        records = instruction_records(seed, sizes.instructions)
        _write_json(folder / "alpaca.json", records, indent=1)
        manifest["alpaca"] = {"records": len(records), "without_input": sum(not r["input"] for r in records)}
        _write_json(folder / "manifest.json", manifest, indent=2)
        if interference:
            _write_json(folder / "instructions.json", following_records(seed, FOLLOWING), indent=1)
            _write_json(folder / "told_captions.json", told_caption_records(seed, TOLD_CAPTIONS), indent=1)
            _write_visual_instructions(folder, seed)


def _write_scienceqa(
    folder: Path, seed: int, sizes: WorldSizes, writer: PictureWriter, short: list[dict[str, Any]]
) -> dict[str, Any]:
    """problems.json, pid_splits.json, captions.json and images/SPLIT/PID/image.png, as upstream has them.

    The pictures of the train split get a short caption, too.
    """
    problems = [problem for split in ("train", "val", "test") for problem in _problems(seed, split, sizes)]
    random.Random(f"order {seed}").shuffle(problems)
    by_pid = {str(number): problem for number, problem in enumerate(problems, start=1)}
    told: dict[str, str] = {}
    for pid, problem in by_pid.items():
        if problem.scene is not None:
            writer.save(problem.scene, folder / "images" / problem.record["split"] / pid / "image.png")
            told[pid] = picture_caption(problem.scene)
            if problem.record["split"] == "train":
                where, id = f"scienceqa/images/train/{pid}", SCIENCEQA_IDS + int(pid)
                numbered = [(id, short_caption(problem.scene))]
                entry = _karpathy_image(where, "image.png", len(short), id, "train", numbered)
                short.append(entry | {"attributes": short_attributes(problem.scene)})
    splits = {
        split: [pid for pid, problem in by_pid.items() if problem.record["split"] == split]
        for split in ("train", "val", "test")
    }
    splits["trainval"] = [pid for pid in by_pid if by_pid[pid].record["split"] in ("train", "val")]
    for split in ("train", "val", "test"):
        splits[f"mini{split}"] = splits[split][: max(1, len(splits[split]) // 10)]
    _write_json(folder / "problems.json", {pid: problem.record for pid, problem in by_pid.items()}, indent=1)
    _write_json(folder / "pid_splits.json", splits, indent=1)
    about = {"model": "made-up", "feature_extractor": "none", "tokenizer": "none", "max_length": 16, "num_beams": 1}
    _write_json(folder / "captions.json", {**about, "captions": told}, indent=1)
    return {**{name: len(pids) for name, pids in splits.items()}, "pictures": len(told)}


def _problems(seed: int, split: str, sizes: WorldSizes) -> Iterator[Problem]:
    count = {"train": sizes.train, "val": sizes.val, "test": sizes.test}[split]
    writer = QuestionWriter(str(seed), split)
    pictures = round(count * sizes.picture_share)
    for number in range(count):
        yield writer.picture_problem() if number < pictures else writer.text_problem()


def _write_coco(
    folder: Path, seed: int, sizes: WorldSizes, writer: PictureWriter, short: list[dict[str, Any]]
) -> dict[str, Any]:
    """Official caption files, Karpathy's dataset_coco.json, and the two picture folders.

    Pictures of one object get a short caption, too.
    """
    rng = random.Random(f"coco {seed}")
    wanted = {
        "train": sizes.coco_train, "restval": sizes.coco_restval, "val": sizes.coco_val, "test": sizes.coco_test,
    }  # fmt: skip
    order = [split for split, count in wanted.items() for _ in range(count)]
    cocoids = sorted(rng.sample(range(1, 582_000), len(order)))
    rng.shuffle(order)
    official: dict[str, dict[str, Any]] = {year: _official_file(year) for year in ("train2014", "val2014")}
    entries: list[dict[str, Any]] = []
    sentence = 0
    for imgid, (cocoid, split) in enumerate(zip(cocoids, order, strict=True)):
        scene = random_pair(rng) if rng.random() < sizes.pair_share else random_scene(rng)
        year = "train2014" if split == "train" else "val2014"
        name = f"COCO_{year}_{cocoid:012d}.jpg"
        writer.save(scene, folder / year / name)
        texts = captions(scene)
        official[year]["images"].append(_official_image(cocoid, name))
        numbered = list(enumerate(texts, start=sentence))
        official[year]["annotations"] += [
            {"image_id": cocoid, "id": number + 1, "caption": text} for number, text in numbered
        ]
        entries.append(_karpathy_image(year, name, imgid, cocoid, split, numbered))
        if scene.companion is None:
            own = [(cocoid, short_caption(scene))]
            entry = _karpathy_image(f"coco/{year}", name, len(short), cocoid, split, own)
            short.append(entry | {"attributes": short_attributes(scene)})
        sentence += len(texts)
    for year, content in official.items():
        _write_json(folder / "annotations" / f"captions_{year}.json", content)
    _write_json(folder / "dataset_coco.json", {"images": entries, "dataset": "coco"})
    return {**wanted, "captions": sentence}


def _official_file(year: str) -> dict[str, Any]:
    info = {"description": f"Made-up shapes, {year}", "url": "", "version": str(VERSION), "year": 2014,
            "contributor": "mmadapter", "date_created": "2014/01/01"}  # fmt: skip
    licenses = [{"url": "", "id": 1, "name": "Made by the project's own program, free to use"}]
    return {"info": info, "images": [], "licenses": licenses, "annotations": []}


def _official_image(cocoid: int, name: str) -> dict[str, Any]:
    return {"license": 1, "file_name": name, "coco_url": "", "height": SIDE, "width": SIDE,
            "date_captured": "2014-01-01 00:00:00", "flickr_url": "", "id": cocoid}  # fmt: skip


def _karpathy_image(
    year: str, name: str, imgid: int, cocoid: int, split: str, numbered: list[tuple[int, str]]
) -> dict[str, Any]:
    sentences = [
        {
            "tokens": text.lower().replace(",", "").replace(".", "").split(),
            "raw": text,
            "imgid": imgid,
            "sentid": number,
        }
        for number, text in numbered
    ]
    return {
        "filepath": year, "sentids": [number for number, _ in numbered], "filename": name, "imgid": imgid,
        "split": split, "sentences": sentences, "cocoid": cocoid,
    }  # fmt: skip


def _write_visual_instructions(folder: Path, seed: int) -> None:
    """Pictures of scenes with one object, moved a little, so that none equals a captioned one; their questions."""
    rng = random.Random(f"visual instructions {seed}")
    items = []
    (folder / "pictures").mkdir()
    for number in range(OPEN_PICTURES):
        scene = random_scene(rng)
        shift = (rng.uniform(-2.0, 2.0), rng.uniform(-2.0, 2.0), rng.uniform(-0.06, 0.06))
        name = f"pictures/{number:04d}.png"
        draw(replace(scene, jitter=shift)).save(folder / name)
        items += open_questions(scene, name, rng)
    _write_json(folder / "visual_instructions.json", items, indent=1)


def _write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Write the world; exit code 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.shapes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to be made")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interference", action="store_true", help="with what experiment=interference reads")
    sizes = [size for size in fields(WorldSizes) if not size.name.endswith("share")]
    for size in sizes:
        option = f"--{size.name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=size.default, metavar="N", help="default %(default)s")
    options = parser.parse_args(arguments)

    def work() -> None:
        wanted = WorldSizes(**{size.name: getattr(options, size.name) for size in sizes})
        make_world(options.out, options.seed, wanted, options.interference)
        print(f"{options.out}: " + (options.out / "manifest.json").read_text(encoding="utf-8").strip())

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main())
