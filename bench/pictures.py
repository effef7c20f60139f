"""Pictures through the image encoder, side by side: python -m bench pictures --count 64

Ours is a run's own picture store, which reads, checks and encodes each picture once and alone, so that its features do
not depend on its neighbours; `open_clip` is that library as its users write it: read, preprocess, batches through the
tower. The tower is a ViT-B/32 with random weights, the pictures are made (640 x 480, JPEG).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from bench.case import Case
from bench.figures import Row, spread, spread_text, tell
from bench.options import device, options
from bench.turns import Measured, measure

TOWERS = {  # open_clip's own configuration of ViT-B-32-quickgelu; and a small one, to try the command
    "vit_b_32": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "tiny": {"image_size": 64, "layers": 2, "width": 128, "patch_size": 32},
}
FEATURES_AGREE = 1e-5  # relative to the largest
COLUMNS = {
    "contender": lambda row: row["contender"],
    "CPU s": lambda row: spread_text(row["cpu_seconds"]),
    "wall s": lambda row: spread_text(row["wall_seconds"]),
    "pictures a second": lambda row: f"{row['pictures_per_second']:.2f}",
    "times the first": lambda row: f"{row['speed']:.2f}",
    "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:.0f}",
}


def main() -> int:
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="bench-pictures-") as scratch:
        folder = Path(scratch)
        save_tower(folder / "clip", TOWERS[asked.tower])
        pictures = save_pictures(folder / "pictures", asked.count, asked.seed)
        case = Case(folder / "clip", 0, 0, 0, 0, 0, 0, device(), threads=asked.threads, pictures=pictures)
        measured, not_run = measure("encoding", dict.fromkeys(asked.contenders, case), 1 + asked.rounds)
    rows = [row_of(one, asked.count, case.is_on_gpu) for one in measured]
    for row in rows:
        row["speed"] = row["pictures_per_second"] / rows[0]["pictures_per_second"]
    notes = [f"{asked.rounds} rounds after 1, {asked.count} pictures each, {asked.threads} thread, float32"]
    status = 0
    if len(measured) > 1:
        apart = max(largest_difference(measured[0].turns[0].outcome, one.turns[0].outcome) for one in measured[1:])
        status = int(apart > FEATURES_AGREE)
        notes.append(f"features: {'NOT ' if status else ''}equal to {apart:.1e} of the largest number")
    result = {"bench": "pictures", "rows": rows, "notes": notes, "not_run": not_run}
    tell(result, COLUMNS, "cpu_seconds", f"CPU seconds for {asked.count} pictures", asked.out)
    return status


def arguments() -> argparse.Namespace:
    parser = options("pictures", __doc__, "ours,open_clip")
    parser.add_argument("--tower", choices=TOWERS, default="vit_b_32")
    parser.add_argument("--count", type=int, default=64, help="pictures")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the pictures")
    return parser.parse_args()


def save_tower(folder: Path, tower: dict[str, int]) -> None:
    """A CLIP with random weights in open_clip's layout; its text half is as small as can be."""
    import open_clip
    from safetensors.torch import save_file

    text = {"context_length": 8, "vocab_size": 64, "width": 64, "heads": 1, "layers": 1}
    config = {"embed_dim": 512, "quick_gelu": True, "vision_cfg": tower, "text_cfg": text}
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    torch.manual_seed(0)
    clip = open_clip.CLIP(**config)
    save_file(
        {name: one.contiguous() for name, one in clip.state_dict().items()}, folder / "open_clip_model.safetensors"
    )


def save_pictures(folder: Path, count: int, seed: int) -> list[Path]:
    """Smooth coloured noise, as large and as costly to decode as photographs."""
    import numpy
    from PIL import Image

    folder.mkdir()
    drawn = numpy.random.default_rng(seed)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for file in files:
        small = Image.fromarray(drawn.integers(0, 256, (60, 80, 3), dtype=numpy.uint8))
        small.resize((640, 480), Image.Resampling.BICUBIC).save(file, quality=90)
    return files


def row_of(one: Measured, count: int, on_gpu: bool) -> Row:
    turns = one.turns[1:]
    cpu, wall = [turn.cpu_seconds for turn in turns], [turn.wall_seconds for turn in turns]
    return {
        "contender": one.name,
        "cpu_seconds": spread(cpu),
        "wall_seconds": spread(wall),
        "pictures_per_second": count * len(turns) / sum(wall if on_gpu else cpu),
        "peak_bytes": one.peak_bytes,
    }


def largest_difference(first: list[list[float]], other: list[list[float]]) -> float:
    """Of two contenders' features, relative to the largest."""
    one, two = torch.tensor(first), torch.tensor(other)
    return float((one - two).abs().max() / one.abs().max())


if __name__ == "__main__":
    raise SystemExit(main())
