"""Write what experiment=interference reads: `python -m data_prep.interference --out DIR`.

The world of shapes as `data_prep.shapes` makes it, and beside it `instructions.json` (language only, Alpaca's layout)
and `visual_instructions.json` with `pictures/` (open instructions about pictures that nothing is trained on). And
`told_captions.json`: captions asked for scenes that are told in words, which experiment=interference_told reads.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

from data_prep.shapes import Progress, WorldSizes, make_world
from data_prep.world.following import following_records, told_caption_records
from data_prep.world.open_questions import open_questions
from data_prep.world.scenes import draw, random_scene
from mmadapter.errors import InputError

INSTRUCTIONS = 3600
TOLD_CAPTIONS = 1700
PICTURES = 50
FILES = ("instructions.json", "told_captions.json", "visual_instructions.json")


def make_interference_world(
    out: Path,
    seed: int = 0,
    sizes: WorldSizes | None = None,
    progress: Progress | None = None,
    instructions: int = INSTRUCTIONS,
    pictures: int = PICTURES,
) -> None:
    """Write everything to `out`, which must not exist yet; it appears under its name only when it is complete."""
    if out.exists():
        raise InputError(f"{out}: already exists. Delete it, or choose another --out; worlds are never mixed.")
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}-interference")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        make_world(partial, seed, sizes, progress)
        _write_json(partial / "instructions.json", following_records(seed, instructions))
        _write_json(partial / "told_captions.json", told_caption_records(seed, TOLD_CAPTIONS))
        _write_visual_instructions(partial, seed, pictures)
        os.rename(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_visual_instructions(folder: Path, seed: int, count: int) -> None:
    """Pictures of scenes with one object, moved a little, so that none equals a captioned one; their questions."""
    rng = random.Random(f"visual instructions {seed}")
    items = []
    (folder / "pictures").mkdir()
    for number in range(count):
        scene = random_scene(rng)
        shift = (rng.uniform(-2.0, 2.0), rng.uniform(-2.0, 2.0), rng.uniform(-0.06, 0.06))
        name = f"pictures/{number:04d}.png"
        draw(replace(scene, jitter=shift)).save(folder / name)
        items += open_questions(scene, name, rng)
    _write_json(folder / "visual_instructions.json", items)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and write; exit code 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.interference", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder to be made")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        make_interference_world(options.out, options.seed)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"written: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
