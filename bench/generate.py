"""Answers, side by side: python -m bench generate --shape small --batches 1,32

Each contender answers the same prompts, greedily and always with so many new tokens (a made host never ends an answer),
in a process of its own; they take turns. `transformers` has no adapter: it is what the host alone costs.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.figures import Row, spread, spread_text, tell
from bench.options import case_of, options_of_a_host
from bench.shapes import SHAPES, missing
from bench.turns import Measured, measure
from mmadapter.data.samples import Sample
from mmadapter.data.templates import Turn, rendered
from mmadapter.data.tokens import SampleEncoder
from mmadapter.hosts.load import load_tokenizer

SAME_ANSWERS = ("ours", "peft")
WORDS = "name say the why colour of a small round thing and people that is seen at night".split()  # noqa: SIM905
COLUMNS = {
    "contender": lambda row: row["contender"],
    "batch": lambda row: str(row["batch"]),
    "CPU s": lambda row: spread_text(row["cpu_seconds"]),
    "wall s": lambda row: spread_text(row["wall_seconds"]),
    "new tokens a second": lambda row: f"{row['tokens_per_second']:.1f}",
    "times the first": lambda row: f"{row['speed']:.2f}",
    "of the floor": lambda row: "" if row["share_of_floor"] is None else f"{row['share_of_floor']:.0%}",
    "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:.0f}",
}


def main() -> int:
    asked = arguments()
    shape = SHAPES[asked.shape]
    reason = missing(shape)
    if shape.folder is not None:
        reason = "a real host ends its answers where it likes, so tokens would not be equal: use small or mid"
    if reason:
        print(f"not run: python -m bench generate --shape {asked.shape}: {reason}")
        return 0
    rows: list[Row] = []
    notes: list[str] = []
    missed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-generate-") as scratch:
        case = case_of(shape, asked, Path(scratch), new_tokens=asked.new_tokens)
        tokenizer = load_tokenizer(case.host)
        for batch in asked.batches:
            prompts = made_prompts(tokenizer, batch, asked.seed)
            encoder = SampleEncoder(tokenizer, shape.longest - asked.new_tokens)
            ids = [list(item.ids) for item in encoder.encode_many(prompts)]
            own = replace(case, prompts=prompts, prompt_ids=ids, pad_id=encoder.pad_id)
            measured, not_run = measure("generation", dict.fromkeys(asked.contenders, own), 1 + asked.rounds)
            missed |= not_run
            found = [row_of(one, batch, asked.new_tokens, case.is_on_gpu) for one in measured]
            floor = next((row["total_seconds"] for row in found if row["contender"] == "floor"), None)
            for row in found:
                row["speed"] = found[0]["total_seconds"] / row["total_seconds"]
                row["share_of_floor"] = None if floor is None else floor / row["total_seconds"]
            rows += found
            notes.append(f"batch {batch}: prompts of {min(map(len, ids))} to {max(map(len, ids))} tokens")
            notes += answers_agreed(measured, tokenizer, batch)
    notes.insert(
        0, f"{asked.rounds} rounds after 1, {asked.new_tokens} new tokens each, {asked.threads} thread, {asked.dtype}"
    )
    notes.append("floor: every linear layer once for the prompts and once for each new token, without attention")
    result = {"bench": "generate", "shape": asked.shape, "rows": rows, "notes": notes, "not_run": missed}
    tell(result, COLUMNS, "cpu_seconds", f"CPU seconds for {asked.new_tokens} new tokens, {asked.shape}", asked.out)
    return 0


def arguments() -> argparse.Namespace:
    parser = options_of_a_host("generate", __doc__, "ours,transformers,peft,floor")
    parser.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 32])
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5, help="measured answers of a batch")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts")
    return parser.parse_args()


def made_prompts(tokenizer: Any, count: int, seed: int) -> list[Sample]:
    """Instructions of 3 to 40 words in Alpaca's frame."""
    drawn = random.Random(seed)
    texts = [" ".join(drawn.choices(WORDS, k=drawn.randint(3, 40))) for _ in range(count)]
    return [
        Sample(str(number), "bench", rendered([Turn(text, None)], None, "alpaca", tokenizer), None, f"prompt {number}")
        for number, text in enumerate(texts)
    ]


def row_of(one: Measured, batch: int, new_tokens: int, on_gpu: bool) -> Row:
    turns = one.turns[1:]
    cpu, wall = [turn.cpu_seconds for turn in turns], [turn.wall_seconds for turn in turns]
    total = sum(wall if on_gpu else cpu)
    return {
        "contender": one.name,
        "batch": batch,
        "cpu_seconds": spread(cpu),
        "wall_seconds": spread(wall),
        "total_seconds": total,
        "tokens_per_second": batch * new_tokens * len(turns) / total,
        "peak_bytes": one.peak_bytes,
    }


def answers_agreed(measured: list[Measured], tokenizer: Any, batch: int) -> list[str]:
    """A sentence about how many answers are the same text, of contenders that have the same adapter."""
    same = {one.name: one.turns[-1].outcome for one in measured if one.name in SAME_ANSWERS}
    if len(same) < 2:
        return []
    texts = [
        given if isinstance(given[0], str) else [text.strip() for text in tokenizer.batch_decode(given, True)]
        for given in same.values()
    ]
    equal = sum(len(set(answers)) == 1 for answers in zip(*texts, strict=True))
    return [f"batch {batch}: {equal} of {batch} answers of {', '.join(same)} are equal"]


if __name__ == "__main__":
    raise SystemExit(main())
