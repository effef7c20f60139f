"""AdamW over groups of roles, each with its own rate, decay, clipping and sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmadapter.errors import InputError
from mmadapter.methods.groups import Group, TrainableParameter
from mmadapter.training.settings import OptimizerConf

EPSILON = 1e-8  # of AdamW, torch's default


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


def build_adamw(
    groups: Sequence[Group],
    trainable: Sequence[TrainableParameter],
    settings: OptimizerConf,
    kind: Callable[..., Any] = torch.optim.AdamW,
) -> Any:
    """AdamW (or what `kind` makes of the same arguments) with two entries a group (decayed or not).

    Each entry carries its group's name and `lr_scale`.
    """
    known = {item.name: item for item in trainable}
    entries: list[dict] = []
    for group in groups:
        decay = settings.weight_decay if group.weight_decay is None else group.weight_decay
        for decayed in (True, False):
            chosen = [p for name, p in group.parameters if known[name].decays == decayed]
            if chosen:
                own = {"group": group.name, "lr_scale": group.lr_scale, "weight_decay": decay if decayed else 0.0}
                entries.append({"params": chosen, **own})
    return kind(entries, lr=0.0, betas=tuple(settings.betas), eps=EPSILON)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives every entry the run's rate times its group's scale."""
    for entry in optimizer.param_groups:
        entry["lr"] = lr * entry["lr_scale"]


def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Euclidean norm over all gradients of a group; not finite if one element is not."""
    return math.sqrt(sum_of_squares(p.grad.detach() for p in parameters if p.grad is not None))


def sum_of_squares(tensors: Iterable[Tensor]) -> float:
    """Over all elements, in float64. The tensors' sums are added exactly, so that empty or idle ones change no bit."""
    squares = [tensor.double().square().sum() for tensor in tensors]
    return math.fsum(torch.stack(squares).tolist()) if squares else 0.0


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiplies a group's gradients in place."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.mul_(factor)


def moments(
    optimizer: torch.optim.AdamW, names: Mapping[int, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, int]]:
    """Both Adam moments {kind: {name: tensor}}, and step counts by name; `names` is id(parameter) -> name."""
    tensors: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    steps: dict[str, int] = {}
    for parameter, state in optimizer.state.items():
        name = names[id(parameter)]
        if state:
            steps[name] = int(state["step"])
            for kind in tensors:
                tensors[kind][name] = state[kind].detach().cpu().clone()
    return tensors, steps


def load_moments(
    optimizer: torch.optim.AdamW,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Mapping[str, Tensor]],
    steps: Mapping[str, int],
) -> None:
    """Puts back what `moments` gave; parameters without an entry have never been moved."""
    optimizer.state.clear()
    for name, count in steps.items():
        parameter = parameters[name]
        optimizer.state[parameter] = {
            "step": torch.tensor(float(count), dtype=torch.float32),
            **{kind: by_name[name].to(parameter.device, copy=True) for kind, by_name in tensors.items()},
        }
