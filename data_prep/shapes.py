"""Write the made-up world in upstream layouts (ScienceQA, COCO, Alpaca): `python -m data_prep.shapes --out DIR`."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from data_prep.world.captions import captions
from data_prep.world.instructions import instruction_records
from data_prep.world.questions import Problem, QuestionWriter, picture_caption
from data_prep.world.scenes import SIDE, Scene, draw, random_pair, random_scene
from mmadapter.errors import InputError

VERSION = 1
Progress = Callable[[int, int], None]  # done, total


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

    def pictures(self) -> int:
        """Roughly how many pictures will be drawn (for progress bars)."""
        questions = (self.train + self.val + self.test) * self.picture_share
        return round(questions) + self.coco_train + self.coco_restval + self.coco_val + self.coco_test


class PictureWriter:
    """Draws and saves pictures; no two pictures of a world are equal."""

    def __init__(self, seed: int, total: int, progress: Progress | None) -> None:
        self._rng = random.Random(f"pictures {seed}")
        self._seen: set[str] = set()
        self._total = total
        self._progress = progress

    def save(self, scene: Scene, path: Path) -> None:
        """Draw a scene to `path`; a picture that was drawn before is moved a little until it is new."""
        picture = draw(scene)
        while (digest := hashlib.sha256(picture.tobytes()).hexdigest()) in self._seen:
            shift = (self._rng.uniform(-2.5, 2.5), self._rng.uniform(-2.5, 2.5), self._rng.uniform(-0.08, 0.08))
            picture = draw(replace(scene, jitter=shift))
        self._seen.add(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        _save_picture(picture, path)
        if self._progress is not None:
            self._progress(len(self._seen), max(self._total, len(self._seen)))


def make_world(out: Path, seed: int = 0, sizes: WorldSizes | None = None, progress: Progress | None = None) -> None:
    """Write a whole world to `out`, which must not exist yet; it appears under its name only when it is complete."""
    sizes = sizes or WorldSizes()
    if out.exists():
        raise InputError(f"{out}: already exists. Delete it, or choose another --out; worlds are never mixed.")
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        writer = PictureWriter(seed, sizes.pictures(), progress)
        manifest: dict[str, Any] = {"world": VERSION, "seed": seed, "sizes": asdict(sizes)}
        manifest["scienceqa"] = _write_scienceqa(partial / "scienceqa", seed, sizes, writer)
        manifest["coco"] = _write_coco(partial / "coco", seed, sizes, writer)
        records = instruction_records(seed, sizes.instructions)
        _write_json(partial / "alpaca.json", records, indent=1)
        manifest["alpaca"] = {"records": len(records), "without_input": sum(not r["input"] for r in records)}
        _write_json(partial / "manifest.json", manifest, indent=2)
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_scienceqa(folder: Path, seed: int, sizes: WorldSizes, writer: PictureWriter) -> dict[str, Any]:
    """problems.json, pid_splits.json, captions.json and images/SPLIT/PID/image.png, as upstream has them."""
    problems = [problem for split in ("train", "val", "test") for problem in _problems(seed, split, sizes)]
    random.Random(f"order {seed}").shuffle(problems)
    by_pid = {str(number): problem for number, problem in enumerate(problems, start=1)}
    told: dict[str, str] = {}
    for pid, problem in by_pid.items():
        if problem.scene is not None:
            writer.save(problem.scene, folder / "images" / problem.record["split"] / pid / "image.png")
            told[pid] = picture_caption(problem.scene)
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


def _write_coco(folder: Path, seed: int, sizes: WorldSizes, writer: PictureWriter) -> dict[str, Any]:
    """Official caption files, Karpathy's dataset_coco.json, and the two picture folders."""
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
    sentences = [{"tokens": _words(text), "raw": text, "imgid": imgid, "sentid": number} for number, text in numbered]
    return {
        "filepath": year, "sentids": [number for number, _ in numbered], "filename": name, "imgid": imgid,
        "split": split, "sentences": sentences, "cocoid": cocoid,
    }  # fmt: skip


def _words(text: str) -> list[str]:
    return text.lower().replace(",", "").replace(".", "").split()


def _save_picture(picture: Image.Image, path: Path) -> None:
    if path.suffix == ".jpg":
        picture.save(path, quality=95, subsampling=0)
    else:
        picture.save(path, compress_level=4)


def _write_json(path: Path, content: Any, indent: int | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and write the world; exit code 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.shapes", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to be made")
    parser.add_argument("--seed", type=int, default=0)
    defaults = WorldSizes()
    for name in ("train", "val", "test", "coco_train", "coco_restval", "coco_val", "coco_test", "instructions"):
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=int, default=getattr(defaults, name), metavar="N", help="default %(default)s")
    options = vars(parser.parse_args(arguments))
    out, seed = options.pop("out"), options.pop("seed")
    show = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if show and (done % 50 == 0 or done == total):
            print(f"\rpictures {done}/{total}", end="", file=sys.stderr, flush=True)

    try:
        make_world(out, seed, WorldSizes(**options), progress)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{out}: " + (out / "manifest.json").read_text(encoding="utf-8").strip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
