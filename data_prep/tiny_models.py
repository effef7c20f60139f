"""Train the project's own small CLIP and LLaMA: `python -m data_prep.tiny_models --part clip|llama`.

Seeded training by a fixed number of steps, never seconds, that stops and continues exactly: anyone gets the same model.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from data_prep.command import exit_status
from data_prep.world.clip import TinyClip
from data_prep.world.llama import TinyLlama
from mmadapter.errors import InputError

SAVE_EVERY_STEPS = 250


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a model is trained."""

    steps: int
    batch_size: int
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    seed: int = 1
    clip_norm: float = 1.0

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 2 % of the peak."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


PARTS: dict[str, tuple[Recipe, type[TinyClip] | type[TinyLlama]]] = {
    "clip": (Recipe(steps=3000, batch_size=128), TinyClip),
    "llama": (Recipe(steps=6000, batch_size=16), TinyLlama),
}


def train(
    made: TinyClip | TinyLlama,
    recipe: Recipe,
    folder: Path,
    checkpoint: Path,
    *,
    resume: bool = False,
    stop_at: int | None = None,
    report: Callable[[str], None] = print,
) -> nn.Module:
    """Train to `recipe.steps` (or `stop_at`), where a step's loss depends on nothing but the step and the model.

    Every `SAVE_EVERY_STEPS` the state goes to `checkpoint`, and a usable model in half precision takes the place of
    `folder`. Raises InputError where the checkpoint to resume from is of another recipe.
    """
    model = made.model
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": recipe.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    first = 0
    if resume and checkpoint.exists():
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
        if state["recipe"] != asdict(recipe):
            raise InputError(
                f"{checkpoint}: it was written by another recipe ({state['recipe']}), this run's is {asdict(recipe)}. "
                "Delete the file, or run without --resume to start again."
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = int(state["step"])
    last = min(recipe.steps, stop_at or recipe.steps)
    began, shown = time.monotonic(), 0.0
    model.train()
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate_at(step)
        loss = made.loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        seconds = time.monotonic() - began
        if seconds - shown > 10 or step + 1 == last:
            shown = seconds
            left = seconds / (step + 1 - first) * (last - step - 1)
            report(f"step {step + 1}/{recipe.steps} loss {loss.item():.4f} seconds {seconds:.0f} left {left:.0f}")
        if (step + 1) % SAVE_EVERY_STEPS == 0 or step + 1 == last:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            written = checkpoint.with_name(f"{checkpoint.name}.partial")
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"step": step + 1, "recipe": asdict(recipe)}, written)
            os.replace(written, checkpoint)
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            made.save(partial)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
    return model


def main(arguments: list[str] | None = None) -> int:
    """Train one part or both; exit code 2 on a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.tiny_models", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("mmadapter/tiny"), help="folder that gets clip/ and llama/")
    parser.add_argument("--part", choices=PARTS, help="train only this part (default: both, one after the other)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (more than the free cores is much slower)")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint, if there is one")
    parser.add_argument("--state", type=Path, default=Path("runs/tiny_models"), help="folder for training checkpoints")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    def train_parts() -> None:
        for part in [options.part] if options.part else PARTS:
            recipe, made = PARTS[part]
            train(
                made(recipe.seed, recipe.batch_size),
                recipe,
                options.out / part,
                options.state / f"{part}.pt",
                resume=options.resume,
                report=partial(print, f"{part}:", flush=True),
            )

    return exit_status(train_parts)


if __name__ == "__main__":
    sys.exit(main())
