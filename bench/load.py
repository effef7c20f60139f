"""From a model's folder to a model that can train, side by side: python -m bench load --shape small

Every round starts a new process for each contender; they take turns. Files are read before, so the disk counts little.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.figures import Row, spread, spread_text, tell
from bench.options import case_of, options_of_a_host
from bench.shapes import SHAPES, missing
from bench.turns import Measured, measure

COLUMNS = {
    "contender": lambda row: row["contender"],
    "CPU s": lambda row: spread_text(row["cpu_seconds"]),
    "wall s": lambda row: spread_text(row["wall_seconds"]),
    "times the first": lambda row: f"{row['speed']:.2f}",
    "peak MB": lambda row: f"{row['peak_bytes'] / 1e6:.0f}",
    "imported MB": lambda row: f"{row['imported_bytes'] / 1e6:.0f}",
}


def main() -> int:
    asked = arguments()
    shape = SHAPES[asked.shape]
    if reason := missing(shape):
        print(f"not run: python -m bench load --shape {asked.shape}: {reason}")
        return 0
    found: dict[str, list[Measured]] = {}
    missed: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="bench-load-") as scratch:
        case = case_of(shape, asked, Path(scratch))
        for _ in range(asked.rounds):
            measured, not_run = measure("loading", dict.fromkeys(asked.contenders, case), 1)
            missed |= not_run
            for one in measured:
                found.setdefault(one.name, []).append(one)
    rows: list[Row] = []
    for name, rounds in found.items():
        cpu = spread([one.turns[0].cpu_seconds for one in rounds])
        row: Row = {
            "contender": name,
            "cpu_seconds": cpu,
            "wall_seconds": spread([one.turns[0].wall_seconds for one in rounds]),
            "peak_bytes": max(one.peak_bytes for one in rounds),
            "imported_bytes": max(one.built.imported_bytes for one in rounds),
        }
        row["speed"] = (rows[0] if rows else row)["cpu_seconds"]["median"] / cpu["median"]
        rows.append(row)
    notes = [
        f"{asked.rounds} rounds, {asked.threads} thread, {asked.dtype}",
        "imported: what the interpreter takes before; peak: what is above that",
    ]
    result = {"bench": "load", "shape": asked.shape, "rows": rows, "notes": notes, "not_run": missed}
    tell(result, COLUMNS, "cpu_seconds", f"CPU seconds to load, {asked.shape}", asked.out)
    return 0


def arguments() -> argparse.Namespace:
    parser = options_of_a_host("load", __doc__, "ours,transformers,peft")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
