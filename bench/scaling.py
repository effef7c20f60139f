"""Time and memory of every process, for engines and numbers of processes, in one run on one machine.

    python -m bench.scaling                                   CPU: a made host of 0.3 GB
    python -m bench.scaling --engines single,zero3 --processes 1,4 --width 1024 --layers 12
    python -m bench.scaling --host /models/llama-7b --batch 32 --tokens 512        on a machine with GPUs

Prints a Markdown table, ratios to its first row, and writes the figures as JSON (--out). The step is the same in every
row: the batch is shared out over the processes. Each case runs `--rounds` times, the rounds of all cases one after the
other, so that a machine that slows down slows all of them down; the fastest round of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.shapes import save_made_host

ENGINES = ("single", "zero0", "zero1", "zero2", "zero3", "zero2_offload", "zero3_offload")
ROWS = ("ratio", "s a step", "peak while loading", "peak in training", "frozen weights", "save", "restore")


@dataclass(frozen=True)
class Case:
    """One engine with one number of processes."""

    engine: str
    processes: int


@dataclass(frozen=True)
class Figures:
    """Of the slowest or largest process; seconds and bytes."""

    step_seconds: float
    loading_peak: int
    training_peak: int
    frozen_bytes: int
    save_seconds: float
    restore_seconds: float


def main() -> None:
    asked = arguments()
    cases = [Case(engine, n) for engine in asked.engines for n in asked.processes if n == 1 or engine != "single"]
    with tempfile.TemporaryDirectory(prefix="bench-scaling-") as folder:
        host = asked.host
        if host is None:
            host = Path(folder) / "host"
            width = asked.width
            size = save_made_host(host, width, asked.layers, max(width // 64, 1), width * 11 // 4 // 8 * 8)
            print(f"made host: {size / 1e6:.0f} MB of float32", flush=True)
        rounds: dict[Case, list[Figures]] = {case: [] for case in cases}
        for number in range(asked.rounds):
            for case in cases:
                own = Path(folder) / f"{case.engine}-{case.processes}-{number}"
                rounds[case].append(run_case(case, own, host, asked))
                print(f"round {number + 1}, {case.engine} x {case.processes}: {rounds[case][-1]}", flush=True)
    fastest = {case: min(found, key=lambda figures: figures.step_seconds) for case, found in rounds.items()}
    print("\n" + table(fastest))
    if asked.out is not None:
        listed = [asdict(case) | asdict(figures) for case, figures in fastest.items()]
        asked.out.write_text(json.dumps(listed, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engines", type=lambda text: text.split(","), default=list(ENGINES))
    parser.add_argument("--processes", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2, 4])
    parser.add_argument("--host", type=Path, help="a model folder; default: a made one of --width and --layers")
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--batch", type=int, default=8, help="samples a step, over all processes")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--out", type=Path)
    parser.add_argument("overrides", nargs="*", help="settings as train.py takes them")
    return parser.parse_args()


def run_case(case: Case, folder: Path, host: Path, asked: argparse.Namespace) -> Figures:
    """Starts the processes of one case and reads what they measured."""
    folder.mkdir()
    overrides = [f"host.path={host}", "vision=none", "adapter=v1", "adapter.prompts.layers=8", f"engine={case.engine}"]
    file = folder / "case.json"
    settings = {"batch": asked.batch, "tokens": asked.tokens, "steps": asked.steps, "threads": asked.threads}
    file.write_text(json.dumps(settings | {"overrides": [*overrides, *asked.overrides], "folder": str(folder)}))
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={case.processes}"]
    command = [sys.executable, *launcher, "-m", "bench.scaling_worker", str(file)]
    if case.engine == "single":
        command = [sys.executable, "-m", "bench.scaling_worker", str(file)]
    threads = str(asked.threads)
    returned = {"MALLOC_MMAP_THRESHOLD_": "1000000"}  # else freed tensors stay with the process, and are counted
    environment = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads} | returned
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{case.engine} x {case.processes} failed:\n{done.stderr[-4000:]}")
    return figures_of([json.loads(path.read_text()) for path in sorted(folder.glob("rank-*.json"))])


def figures_of(ranks: list[dict[str, Any]]) -> Figures:
    """Of all processes: the slowest time, the largest memory."""
    return Figures(
        step_seconds=max(statistics.median(rank["step_seconds"]) for rank in ranks),
        **{
            name: max(rank[name] for rank in ranks)
            for name in ("loading_peak", "training_peak", "frozen_bytes", "save_seconds", "restore_seconds")
        },
    )


def table(found: dict[Case, Figures]) -> str:
    """The Markdown table: one row a case."""
    first = next(iter(found.values())).step_seconds
    lines = [f"| engine | processes | {' | '.join(ROWS)} |", f"|---|---|{'---|' * len(ROWS)}"]
    for case, of in found.items():
        cells = [f"{of.step_seconds / first:.2f}", f"{of.step_seconds:.3f}"]
        cells += [f"{size / 1e6:.0f} MB" for size in (of.loading_peak, of.training_peak, of.frozen_bytes)]
        cells += [f"{seconds:.2f} s" for seconds in (of.save_seconds, of.restore_seconds)]
        lines.append(f"| {case.engine} | {case.processes} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
