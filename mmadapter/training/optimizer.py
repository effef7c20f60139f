"""AdamW over groups of roles, each with its own rate, decay, clipping and sources."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmadapter.errors import InputError
from mmadapter.methods.groups import Group, TrainableParameter
from mmadapter.training.settings import OptimizerConf

EPSILON = 1e-8  # of AdamW, torch's default
MOMENTS = ("exp_avg", "exp_avg_sq")  # as AdamW calls them


def learns_from(group: Group, source: str) -> bool:
    """Whether samples of `source` move the group."""
    return group.sources is None or source in group.sources


def check_sources(groups: Sequence[Group], sources: Iterable[str]) -> None:
    """Raises InputError for a group that no source moves, or that names a source that is not there."""
    present = sorted(sources)
    for group in groups:
        unknown = [name for name in group.sources or () if name not in present]
        if unknown or not any(learns_from(group, name) for name in present):
            raise InputError(
                f"adapter.groups.{group.name}.sources names {', '.join(unknown) or 'nothing'}, which is not among the "
                f"sources of this run: {', '.join(present) or '(none)'}. Correct the name; null means all sources."
            )


def adam_entries(
    groups: Sequence[Group], trainable: Sequence[TrainableParameter], settings: OptimizerConf
) -> list[dict[str, Any]]:
    """What AdamW moves: two entries a group (decayed or not), with the group's name and `lr_scale`."""
    known = {item.name: item for item in trainable}
    entries: list[dict[str, Any]] = []
    for group in groups:
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        for decayed in (True, False):
            chosen = [p for name, p in group.parameters if known[name].decays == decayed]
            if chosen:
                own = {"group": group.name, "lr_scale": group.lr_scale, "weight_decay": decay if decayed else 0.0}
                entries.append({"params": chosen, **own})
    return entries


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every entry the run's rate times its group's scale."""
    for entry in optimizer.param_groups:
        entry["lr"] = lr * entry["lr_scale"]


def sum_of_squares(tensors: Iterable[Tensor]) -> float:
    """Over all elements, in float64. The tensors' sums are added exactly, so that empty or idle ones change no bit."""
    squares = [tensor.double().square().sum() for tensor in tensors]
    return math.fsum(torch.stack(squares).tolist()) if squares else 0.0


def scale(tensors: Iterable[Tensor], factor: float) -> None:
    """Multiplies tensors in place."""
    for tensor in tensors:
        tensor.mul_(factor)
