"""A training step, side by side: python -m bench train --shape small --contenders ours,as_published,peft,floor

Each contender learns from the same sequences with the same weights, in a process of its own; they take turns, step by
step. NAME@sorted takes the batches of our data order, NAME@drawn the same samples in batches as a plain shuffle draws
them; without it a contender has its usual ones. The figure is CPU seconds, which other processes of the machine change
least; on a GPU it is wall seconds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.case import Case
from bench.figures import Row, spread, spread_text, tell
from bench.options import case_of, options_of_a_host
from bench.sequences import Batches, alpaca_samples, batches_of, made_samples, real_tokens
from bench.shapes import SHAPES, Shape, missing
from bench.turns import Measured, measure

USUAL = "ours,ours@drawn,padded,padded@drawn,as_published,transformers,peft,peft@sorted,floor"
USUAL_V2 = "ours,ours@drawn,padded,plain_v2,plain_v2@sorted,floor"
USUAL_ORDER = {"ours": "sorted", "padded": "sorted", "as_published": "sorted", "floor": "sorted"}  # all others: drawn
SAME_MODEL = ("ours", "padded", "as_published", "peft", "plain_v2")  # they compute the same loss from the same weights
SAME_TRAINING = ("ours", "padded", "as_published")  # and go on doing so, as they train the same parameters
# Relative differences of losses that are allowed: of the first one, and of later ones, behind some steps of training.
LOSSES_AGREE = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 1e-2)}
COLUMNS = {
    "contender": lambda row: row["contender"],
    "batches": lambda row: row["order"],
    "CPU s a step": lambda row: spread_text(row["cpu_seconds"]),
    "wall s a step": lambda row: spread_text(row["wall_seconds"]),
    "real tokens a second": lambda row: f"{row['tokens_per_second']:.0f}",
    "times the first": lambda row: f"{row['speed']:.2f}",
    "of the floor": lambda row: "" if row["share_of_floor"] is None else f"{row['share_of_floor']:.0%}",
    "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:.0f}",
}


def main() -> int:
    asked = arguments()
    shape = SHAPES[asked.shape]
    if reason := missing(shape):
        print(f"not run: python -m bench train --shape {asked.shape}: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-train-") as scratch:
        batches, case = prepared(shape, asked, Path(scratch))
        cases = {name: replace(case, steps=batches.of(order_of(name), asked.warmup)) for name in asked.contenders}
        measured, not_run = measure("training", cases, asked.warmup + asked.steps)
    rows = [row_of(one, batches, asked.warmup, case.is_on_gpu) for one in measured]
    compared(rows)
    problems, agreements = losses_agreed(rows, *LOSSES_AGREE[asked.dtype])
    tokens = sum(map(real_tokens, batches.sorted)) / asked.steps
    longest = max(len(item.ids) for step in batches.sorted for item in step)
    notes = [
        f"{asked.steps} steps after {asked.warmup}, {case.threads} thread, {asked.dtype}; {tokens:.0f} real tokens a "
        f"step, the longest sample has {longest}; in brackets least and most; tokens and ratios by "
        f"{'wall' if case.is_on_gpu else 'CPU'} seconds of all steps",
        "peak: above the imported interpreter, weights included; of the floor: the step's matrix products alone / it",
        *agreements,
    ]
    result = {"bench": "train", "shape": asked.shape, "rows": rows, "notes": notes, "not_run": not_run}
    tell(result, COLUMNS, "cpu_seconds", f"CPU seconds a step, {asked.shape}", asked.out)
    for text in problems:
        print(f"DISAGREE: {text}")
    return 1 if problems else 0


def order_of(name: str) -> str:
    """Whether a contender takes the batches of our order ("sorted") or as a shuffle draws them ("drawn")."""
    base, _, order = name.partition("@")
    if order not in ("", "sorted", "drawn"):
        raise SystemExit(f"{name}: @sorted or @drawn")
    return order or USUAL_ORDER.get(base, "drawn")


def arguments() -> argparse.Namespace:
    parser = options_of_a_host("train", __doc__, None)
    parser.epilog = f"usual contenders: {USUAL}; with --adapter v2: {USUAL_V2}"
    parser.add_argument("--adapter", choices=["v1", "v2"], default="v1", help="v2: bias, scale and norms, too")
    parser.add_argument("--steps", type=int, default=10, help="measured steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before them, at least 1")
    parser.add_argument("--seed", type=int, default=0, help="of the sequences and their order")
    parser.add_argument("overrides", nargs="*", help="settings of ours, as mmadapter train takes them")
    asked = parser.parse_args()
    asked.contenders = asked.contenders or (USUAL if asked.adapter == "v1" else USUAL_V2).split(",")
    return asked


def prepared(shape: Shape, asked: argparse.Namespace, scratch: Path) -> tuple[Batches, Case]:
    """The batches of the sequences, and the case without its steps."""
    case = case_of(shape, asked, scratch, adapter=asked.adapter, overrides=tuple(asked.overrides))
    if shape.folder is None:
        samples = made_samples(shape.vocabulary, shape.longest, seed=asked.seed)
    else:
        samples = alpaca_samples(case.host, shape.longest, seed=asked.seed)
    return batches_of(samples, shape.batch, asked.steps, asked.seed), case


def row_of(one: Measured, batches: Batches, warmup: int, on_gpu: bool) -> Row:
    turns, order = one.turns[warmup:], order_of(one.name)
    cpu, wall = [turn.cpu_seconds for turn in turns], [turn.wall_seconds for turn in turns]
    total = sum(wall if on_gpu else cpu)
    return {
        "contender": one.name,
        "order": order,
        "cpu_seconds": spread(cpu),
        "wall_seconds": spread(wall),
        "total_seconds": total,
        "tokens_per_second": sum(map(real_tokens, batches.of(order, 0))) / total,
        "peak_bytes": one.peak_bytes,
        "imported_bytes": one.built.imported_bytes,
        "cpu_seconds_of_steps": cpu,
        "outcomes": [turn.outcome for turn in one.turns],
    }


def compared(rows: Sequence[Row]) -> None:
    """Puts the ratios in: all contenders have the same tokens to learn from, so whole times are compared."""
    floor = next((row["total_seconds"] for row in rows if row["contender"].startswith("floor")), None)
    for row in rows:
        row["speed"] = rows[0]["total_seconds"] / row["total_seconds"]
        row["share_of_floor"] = None if floor is None else floor / row["total_seconds"]


def losses_agreed(rows: Sequence[Row], first: float, later: float) -> tuple[list[str], list[str]]:
    """What does not agree that should, and sentences about what does.

    The first batch is the same for all; later ones are for those that share an order. `first` and `later` are the
    relative differences that are allowed.
    """
    problems: list[str] = []
    agreements: list[str] = []
    by_name: Mapping[str, Row] = {row["contender"]: row for row in rows}

    def check(names: Sequence[str], steps: slice, limit: float, what: str) -> None:
        if len(names) < 2:
            return
        losses: list[Any] = [by_name[name]["outcomes"][steps] for name in names]
        apart = max(
            abs(other - one) / abs(one) for others in losses[1:] for one, other in zip(losses[0], others, strict=True)
        )
        agrees = apart <= limit
        text = f"{what} of {', '.join(names)}: {'equal' if agrees else 'NOT equal'} to {apart:.1e} relative"
        (agreements if agrees else problems).append(f"{text} ({limit:.0e} allowed)")

    base = {name: name.partition("@")[0] for name in by_name}
    check([name for name in by_name if base[name] in SAME_MODEL], slice(0, 1), first, "the first step's loss")
    for order in ("sorted", "drawn"):
        same = [name for name, row in by_name.items() if base[name] in SAME_TRAINING and row["order"] == order]
        check(same, slice(0, None), later, f"the losses of all steps ({order})")
    return problems, agreements


if __name__ == "__main__":
    raise SystemExit(main())
