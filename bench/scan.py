"""From short samples to long ones and from one row to many: tokens a second of a training step, and of its floor.

Every sample of a step has the same number of tokens and shares none with the others; a step is one micro-batch. What is
asked: how much the tokens a second of ours fall from the best place of the scan to each other one, beyond the floor's
own fall.
"""

from __future__ import annotations

import random
import tempfile
from array import array
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.figures import tell
from bench.options import case_of, options_of_a_host
from bench.shapes import SHAPES, missing
from bench.turns import measure
from mmadapter.data.samples import ANSWER, INSTRUCTION, Sample, Segment
from mmadapter.data.tokens import Encoded

COLUMNS = {
    "contender": lambda row: row["contender"],
    "tokens a sample": lambda row: str(row["tokens"]),
    "rows": lambda row: str(row["rows"]),
    "CPU s a step": lambda row: f"{row['cpu_seconds']['median']:.3g}",
    "tokens a second": lambda row: f"{row['tokens_per_second']:.0f}",
    "of the floor": lambda row: "" if row["share_of_floor"] is None else f"{row['share_of_floor']:.0%}",
    "fall beyond the floor's": lambda row: "" if row["fall"] is None else f"{row['fall']:.0%}",
}
Row = dict[str, Any]


def main() -> int:
    parser = options_of_a_host("scan", __doc__, "ours,floor")
    parser.add_argument(
        "--tokens", type=numbers, default=[256, 512, 1024, 2048], help="of a sample; usual: 256 to 2048"
    )
    parser.add_argument("--rows", type=numbers, default=[1, 4, 16, 64], help="of a micro-batch, 1 to 64")
    parser.add_argument("--most", type=int, default=4096, help="tokens a step; larger products are left out")
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one that is not")
    asked = parser.parse_args()
    shape = SHAPES[asked.shape]
    if reason := missing(shape):
        print(f"not run: python -m bench scan --shape {asked.shape}: {reason}")
        return 0
    sizes = [(tokens, rows) for tokens in asked.tokens for rows in asked.rows if tokens * rows <= asked.most]
    found: list[Row] = []
    not_run: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-scan-") as scratch:
        base = case_of(shape, asked, Path(scratch))
        for tokens, rows in sizes:
            step = [made_sample(tokens, shape.vocabulary, number) for number in range(rows)]
            whole = (f"optimizer.micro_batch_tokens={tokens * rows}",)
            case = replace(base, batch=rows, longest=tokens, steps=[step] * (1 + asked.steps), overrides=whole)
            measured, failed = measure("training", dict.fromkeys(asked.contenders, case), 1 + asked.steps)
            not_run |= {f"{name}, {rows} x {tokens} tokens": reason for name, reason in failed.items()}
            for one in measured:
                turns = one.turns[1:]
                cpu = sorted(turn.wall_seconds if case.is_on_gpu else turn.cpu_seconds for turn in turns)
                seconds = {"min": cpu[0], "median": cpu[len(cpu) // 2], "max": cpu[-1]}
                row = {"contender": one.name, "tokens": tokens, "rows": rows, "cpu_seconds": seconds}
                found.append({**row, "tokens_per_second": tokens * rows * len(cpu) / sum(cpu)})
    compared(found)
    notes = [
        f"{asked.steps} steps after 1, {asked.threads} thread, {asked.dtype}; at most {asked.most} tokens a step",
        "fall beyond the floor's: 1 - (share of the floor here / the best share of the scan)",
    ]
    result = {"bench": "scan", "shape": asked.shape, "rows": found, "notes": notes, "not_run": not_run}
    tell(result, COLUMNS, "cpu_seconds", f"CPU seconds a step, {asked.shape}", asked.out)
    return 0


def numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def made_sample(tokens: int, vocabulary: int, seed: int) -> Encoded:
    """A sample of random tokens, its second half learned."""
    ids = array("i", random.Random(seed).choices(range(8, vocabulary), k=tokens))
    pieces = (Segment("made", INSTRUCTION), Segment("made", ANSWER))
    return Encoded(Sample(str(seed), "bench", pieces, None, f"made sample {seed}"), ids, ((tokens // 2, tokens),))


def compared(rows: list[Row]) -> None:
    """Puts in each row's share of the floor at the same size, and how far it lies below the contender's best share."""
    floors = {(row["tokens"], row["rows"]): row["tokens_per_second"] for row in rows if row["contender"] == "floor"}
    for row in rows:
        floor = floors.get((row["tokens"], row["rows"]))
        row["share_of_floor"] = None if floor is None else row["tokens_per_second"] / floor
    for row in rows:
        shares = [other["share_of_floor"] for other in rows if other["contender"] == row["contender"]]
        known = [share for share in shares if share is not None]
        share = row["share_of_floor"]
        row["fall"] = None if share is None else 1 - share / max(known)
