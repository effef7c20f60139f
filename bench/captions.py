"""Captions, five a picture: a training step of V2 on whole pictures, beside the same captions as a shuffle draws them.

`together` is captions_per_image=together: a picture's five captions stand in the same step, where the picture and the
question about it are computed once. `drawn` is captions_per_image=all: of so many pictures hardly two captions of one
meet. A step is one micro-batch, and the pictures' features are there.
"""

from __future__ import annotations

import random
import tempfile
from array import array
from dataclasses import replace
from pathlib import Path

from bench.figures import Row, spread, spread_text, tell
from bench.options import case_of, options_of_a_host
from bench.shapes import SHAPES, missing
from bench.turns import measure
from mmadapter.data.mixture import LengthBucketedOrder
from mmadapter.data.samples import ANSWER, INSTRUCTION, Sample, Segment
from mmadapter.data.tokens import Encoded

CAPTIONS = 5  # of a picture
POOL = 64  # times the pictures of a step: what steps are drawn from
QUESTION_TOKENS, CAPTION_TOKENS = 42, (8, 16)  # V2's request in Alpaca's frame; COCO's captions have 12 on average
COLUMNS = {
    "order": lambda row: row["contender"].partition("@")[2],
    "CPU s a step": lambda row: spread_text(row["cpu_seconds"]),
    "captions a second": lambda row: f"{row['captions_per_second']:.1f}",
    "times drawn": lambda row: f"{row['speed']:.2f}",
    "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:.0f}",
}


def main() -> int:
    parser = options_of_a_host("captions", __doc__, "ours@together,ours@drawn")
    parser.add_argument("--pictures", type=int, default=8, help="in a step of `together`")
    parser.add_argument("--steps", type=int, default=4, help="measured steps, after one that is not")
    asked = parser.parse_args()
    shape, batch = SHAPES[asked.shape], CAPTIONS * asked.pictures
    if reason := missing(shape):
        print(f"not run: python -m bench captions --shape {asked.shape}: {reason}")
        return 0
    samples = captions_of(asked.pictures * POOL, shape.vocabulary)
    units = [list(range(first, first + CAPTIONS)) for first in range(0, len(samples), CAPTIONS)]
    with tempfile.TemporaryDirectory(prefix="bench-captions-") as scratch:
        base = replace(case_of(shape, asked, Path(scratch), adapter="v2_captions"), batch=batch)
        base = replace(base, overrides=("optimizer.micro_batch_tokens=null",))
        cases = {}
        for name in asked.contenders:
            kept = units if name.endswith("@together") else None
            order = LengthBucketedOrder([len(one.ids) for one in samples], batch, 0, units=kept)
            steps = [[samples[number] for number in order.batch_indices(0, step)] for step in range(asked.steps)]
            cases[name] = replace(base, steps=[steps[0], *steps])
        measured, not_run = measure("training", cases, 1 + asked.steps)
    rows: list[Row] = []
    for one in measured:
        cpu = [turn.wall_seconds if base.is_on_gpu else turn.cpu_seconds for turn in one.turns[1:]]
        figures = {"cpu_seconds": spread(cpu), "captions_per_second": batch * len(cpu) / sum(cpu)}
        rows.append({"contender": one.name, **figures, "peak_bytes": one.peak_bytes})
    for row in rows:
        row["speed"] = row["captions_per_second"] / rows[-1]["captions_per_second"]
    notes = [f"{asked.steps} steps of {batch} captions after 1, {asked.threads} thread, {asked.dtype}"]
    result = {"bench": "captions", "shape": asked.shape, "rows": rows, "notes": notes, "not_run": not_run}
    tell(result, COLUMNS, "cpu_seconds", f"CPU seconds a step, {asked.shape}", asked.out)
    return 0


def captions_of(pictures: int, vocabulary: int) -> list[Encoded]:
    """Five captions of each of so many pictures, of random tokens behind the same question."""
    drawn = random.Random(0)
    question = drawn.choices(range(8, vocabulary), k=QUESTION_TOKENS)
    pieces = (Segment("made", INSTRUCTION), Segment("made", ANSWER))
    samples = []
    for number in range(CAPTIONS * pictures):
        ids = [*question, *drawn.choices(range(8, vocabulary), k=drawn.randint(*CAPTION_TOKENS))]
        picture = Path(f"{number // CAPTIONS}.png")
        sample = Sample(str(number), "captions", pieces, picture, f"caption {number}")
        samples.append(Encoded(sample, array("i", ids), ((QUESTION_TOKENS, len(ids)),)))
    return samples
