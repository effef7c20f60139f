"""Train the project's own small CLIP and LLaMA: `python -m data_prep.tiny_models --part clip|llama`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from mmadapter.errors import InputError

PARTS = ("clip", "llama")


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, train one part or both; exit code 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.tiny_models", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("mmadapter/tiny"), help="folder that gets clip/ and llama/")
    parser.add_argument("--part", choices=PARTS, help="train only this part (default: both, one after the other)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (more than the free cores is much slower)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    parser.add_argument("--state", type=Path, default=Path("runs/tiny_models"), help="folder for training checkpoints")
    parser.add_argument("--stop-at", type=int, help="stop after this step (continue later with --resume)")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    try:
        for part in [options.part] if options.part else PARTS:
            train(part, options)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def train(part: str, options: argparse.Namespace) -> None:
    """Train one part with its committed recipe."""
    import torch

    torch.set_num_threads(options.threads)
    checkpoint = options.state / f"{part}.pt"

    def report(line: str) -> None:
        print(f"{part}: {line}", flush=True)

    if part == "clip":
        from data_prep.world.clip import train_clip as train_part
    else:
        from data_prep.world.llama import train_llama as train_part  # type: ignore[assignment]
    train_part(options.out / part, checkpoint, resume=options.resume, stop_at=options.stop_at, report=report)


if __name__ == "__main__":
    sys.exit(main())
