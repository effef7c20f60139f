"""From a model's folder to a model that can train, side by side: python -m bench load --shape small

Every round starts a new process for each contender; they take turns. Files are read before, so the disk counts little.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from bench.case import Case
from bench.figures import Row, spread, spread_text, tell
from bench.shapes import LENGTH, SHAPES, host_of, missing
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
        device = "cuda" if torch.cuda.is_available() else "cpu"
        case = Case(
            *(host_of(shape, Path(scratch)), shape.width, shape.layers, shape.prompt_layers, LENGTH, shape.batch),
            *(shape.longest, device, asked.dtype, asked.threads),
        )
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
    parser = argparse.ArgumentParser("bench load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--contenders", type=lambda text: text.split(","), default=["ours", "transformers", "peft"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--out", type=Path, help="folder for result.json, table.md and plot.svg")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
