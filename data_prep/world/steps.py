"""Seeded training by a fixed number of steps that stops and continues exactly: the loop behind both tiny models."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mmadapter.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """How long and how fast a model is trained; steps, never seconds, so that anyone gets the same model."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float
    seed: int
    clip_norm: float = 1.0


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then half a cosine down to 2 % of the peak."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))


def train_in_steps(
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    recipe: Recipe,
    checkpoint: Path,
    *,
    resume: bool,
    export: Callable[[], None],
    save_every_steps: int = 250,
    stop_at: int | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Train to `recipe.steps` (or `stop_at`); `loss_at(step)` must depend on nothing but the step and the model.

    Every `save_every_steps` the training state goes to `checkpoint` and `export` writes a usable model.
    """
    optimizer = torch.optim.AdamW(_decay_groups(model, recipe.weight_decay), lr=recipe.learning_rate, betas=(0.9, 0.98))
    first = _restore(model, optimizer, recipe, checkpoint) if resume and checkpoint.exists() else 0
    last = min(recipe.steps, stop_at or recipe.steps)
    began, shown = time.monotonic(), 0.0
    model.train()
    for step in range(first, last):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(recipe, step)
        loss = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), recipe.clip_norm)
        optimizer.step()
        seconds = time.monotonic() - began
        if seconds - shown > 10 or step + 1 == last:
            shown = seconds
            left = seconds / (step + 1 - first) * (last - step - 1)
            report(f"step {step + 1}/{recipe.steps} loss {loss.item():.4f} seconds {seconds:.0f} left {left:.0f}")
        if (step + 1) % save_every_steps == 0 or step + 1 == last:
            _save(model, optimizer, recipe, step + 1, checkpoint)
            export()


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _save(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, step: int, checkpoint: Path) -> None:
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "recipe": asdict(recipe)}
    partial = checkpoint.with_name(checkpoint.name + ".partial")
    torch.save(state, partial)
    os.replace(partial, checkpoint)


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe, checkpoint: Path) -> int:
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise InputError(
            f"{checkpoint}: it was written by another recipe ({state['recipe']}), this run's is {asdict(recipe)}. "
            "Delete the file, or run without --resume to start again."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
