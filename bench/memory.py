"""What a training step keeps for its backward, and its peak: python -m bench memory --shape small

Three batches of a window of the data, by the length of their longest sample: the median one and the largest one of our
order, and one as a shuffle draws it. Kept are the bytes of all tensors that the forward saves, weights apart.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from bench.figures import Row, tell
from bench.options import options_of_a_host
from bench.sequences import Batches, real_tokens
from bench.shapes import SHAPES, missing
from bench.train import prepared
from bench.turns import Measured, measure
from mmadapter.data.mixture import WINDOW
from mmadapter.data.tokens import Encoded

COLUMNS = {
    "contender": lambda row: row["contender"],
    "batch": lambda row: row["batch"],
    "real tokens": lambda row: str(row["real_tokens"]),
    "kept MB": lambda row: f"{row['kept_bytes'] / 1e6:.0f}",
    "kept KiB a real token": lambda row: f"{row['kept_bytes'] / row['real_tokens'] / 1024:.0f}",
    "peak MB": lambda row: f"{row['peak']['median'] / 1e6:.0f}",
    "of the first": lambda row: f"{row['of_the_first']:.2f}",
}


def main() -> int:
    asked = arguments()
    shape = SHAPES[asked.shape]
    if reason := missing(shape):
        print(f"not run: python -m bench memory --shape {asked.shape}: {reason}")
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as scratch:
        asked.steps = WINDOW // shape.batch  # all batches of the window
        batches, case = prepared(shape, asked, Path(scratch))
        steps = chosen(batches)
        case = replace(case, steps=list(steps.values()), counts_kept=True)
        measured, not_run = measure("training", dict.fromkeys(asked.contenders, case), len(steps))
    rows = [row for one in measured for row in rows_of(one, steps)]
    for number, row in enumerate(rows):
        row["of_the_first"] = row["peak"]["median"] / rows[number % len(steps)]["peak"]["median"]
    notes = [
        f"{asked.threads} thread, {asked.dtype}; peak: of that step, above the imported interpreter, weights included; "
        "freed memory that a process has not given back counts, so a later batch shows at least an earlier one's"
    ]
    result = {"bench": "memory", "shape": asked.shape, "rows": rows, "notes": notes, "not_run": not_run}
    tell(result, COLUMNS, "peak", f"Peak bytes of a step, {asked.shape}", asked.out)
    return 0


def chosen(batches: Batches) -> dict[str, list[Encoded]]:
    """Name of a batch -> its samples; the smallest first."""
    by_length = sorted(batches.sorted, key=lambda step: max(len(item.ids) for item in step))
    return {"median": by_length[len(by_length) // 2], "drawn": batches.first, "largest": by_length[-1]}


def rows_of(one: Measured, steps: dict[str, list[Encoded]]) -> list[Row]:
    return [
        {
            "contender": one.name,
            "batch": name,
            "real_tokens": real_tokens(step),
            "kept_bytes": turn.outcome[1],
            "peak": dict.fromkeys(("median", "min", "max"), turn.peak_bytes - one.built.imported_bytes),
        }
        for (name, step), turn in zip(steps.items(), one.turns, strict=True)
    ]


def arguments() -> argparse.Namespace:
    parser = options_of_a_host("memory", __doc__, "ours,as_published,transformers,peft")
    parser.add_argument("--adapter", choices=["v1", "v2"], default="v1", help="v2: bias, scale and norms, too")
    parser.add_argument("--seed", type=int, default=0, help="of the sequences and their order")
    parser.add_argument("overrides", nargs="*", help="settings of ours, as mmadapter train takes them")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
