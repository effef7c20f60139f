"""How far each group has come from where its run started: distances of parameters, by group (law 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from mmadapter.adapters.roles import Group, TrainableParameter
from mmadapter.processes import here
from mmadapter.training.checkpoint import WRITING, write_durably

START_FILE = "start.safetensors"
Moved = dict[str, dict[str, float | None]]


class RunStart:
    """The parameters as the run started: what movement is measured from, and what frozen roles stay at.

    Made before any checkpoint is loaded. It is kept beside the checkpoints, which hold nothing but what trains, so that
    a continued run has the same start even where that could not be drawn or read again (another machine, an
    `adapter.start` that has changed).
    """

    def __init__(self, groups: Sequence[Group], trainable: Sequence[TrainableParameter], folder: Path) -> None:
        self.groups, self.file = groups, folder / START_FILE
        self._parameters = {item.name: item.parameter for item in trainable}
        self._take({name: parameter.detach().clone() for name, parameter in self._parameters.items()})

    def save(self) -> None:
        """Writes the start down: a new run. Only the first process does."""
        if not here().is_first:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f"{WRITING}{START_FILE}")
        write_durably(temporary, tensors_to_bytes({name: t.cpu().contiguous() for name, t in self._values.items()}))
        temporary.replace(self.file)

    @torch.no_grad()
    def restore(self) -> None:
        """Takes up the start that was written down; without the file the present one, drawn anew, stays."""
        content = here().decide(lambda: self.file.read_bytes() if self.file.is_file() else None)
        if content is not None:
            there = tensors_from_bytes(content)
            self._take({name: there[name].to(tensor.device) for name, tensor in self._values.items()})
            for name, parameter in self._parameters.items():
                parameter.copy_(self._values[name])

    @torch.no_grad()
    def movement(self) -> Moved:
        """Group -> Euclidean `distance` from its start, and `relative` to the start's norm (None where that is 0)."""
        moved: Moved = {}
        for group in self.groups:
            distance = norm([parameter.detach() - self._values[name] for name, parameter in group.parameters])
            start = self._norms[group.name]
            moved[group.name] = {"distance": distance, "relative": distance / start if start else None}
        return moved

    def _take(self, values: Mapping[str, Tensor]) -> None:
        self._values = values
        self._norms = {group.name: norm([values[name] for name, _ in group.parameters]) for group in self.groups}


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors together, summed in float64."""
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())


def moved_text(moved: Moved) -> str:
    """instruction 1.23 (4.5 %), visual 0.12"""
    return ", ".join(
        f"{name} {one['distance']:.3g}" + ("" if one["relative"] is None else f" ({one['relative']:.1%})")
        for name, one in moved.items()
    )
