"""Speed and memory of what mmadapter does, side by side with others, in one run on one machine.

    python -m bench train       a training step: time, tokens, memory, and how far it is from its matrix products alone
    python -m bench scan        the same from short samples to long ones, from one row to many
    python -m bench captions    captions of whole pictures beside captions that are drawn one by one
    python -m bench generate    answers, token by token
    python -m bench load        from a model's folder to a model that can train
    python -m bench memory      what a step keeps for its backward, and its peak
    python -m bench pictures    pictures through the image encoder
    python -m bench scaling     engines and numbers of processes

Each has --help. All but the last run every contender in a process of its own, on one thread; the processes take turns.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module

COMMANDS = ("train", "scan", "captions", "generate", "load", "memory", "pictures", "scaling")


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        print(__doc__)
        sys.exit(0 if sys.argv[1:2] in ([], ["-h"], ["--help"]) else 2)
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns when it is imported
    command = sys.argv.pop(1)
    sys.exit(import_module(f"bench.{command}").main())


if __name__ == "__main__":  # the processes of the contenders read this file, too
    main()
