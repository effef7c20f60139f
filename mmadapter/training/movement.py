"""How far each group has come from where its run started: distances of parameters, by group (law 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from mmadapter.adapters.roles import Group
from mmadapter.training.checkpoint import WRITING, write_durably

START_FILE = "start.safetensors"
Moved = dict[str, dict[str, float | None]]


class Movement:
    """Distances from the start of the run. Made before any checkpoint is loaded: what the parameters are then is it.

    The start is kept in the folder of the checkpoints, so that a continued run measures from the same values even where
    they could not be drawn or read again (another machine, an `adapter.start` that has changed).
    """

    def __init__(self, groups: Sequence[Group], folder: Path) -> None:
        self.groups, self.file = groups, folder / START_FILE
        self._take({name: p.detach().clone() for group in groups for name, p in group.parameters})

    def begin(self) -> None:
        """Writes the start down: a new run."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.file.with_name(f"{WRITING}{START_FILE}")
        write_durably(temporary, tensors_to_bytes({name: t.cpu().contiguous() for name, t in self._start.items()}))
        temporary.replace(self.file)

    def go_on(self) -> None:
        """Takes up the start that was written down; without the file the present one, drawn anew, stays."""
        if self.file.is_file():
            there = tensors_from_bytes(self.file.read_bytes())
            self._take({name: there[name].to(tensor.device) for name, tensor in self._start.items()})

    @torch.no_grad()
    def by_group(self) -> Moved:
        """Group -> Euclidean `distance` from its start, and `relative` to the start's norm (None where that is 0)."""
        moved: Moved = {}
        for group in self.groups:
            distance = norm([p.detach() - self._start[name] for name, p in group.parameters])
            start = self._norms[group.name]
            moved[group.name] = {"distance": distance, "relative": distance / start if start else None}
        return moved

    def _take(self, start: Mapping[str, Tensor]) -> None:
        self._start = start
        self._norms = {group.name: norm([start[name] for name, _ in group.parameters]) for group in self.groups}


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors together, summed in float64."""
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())


def moved_text(moved: Moved) -> str:
    """instruction 1.23 (4.5 %), visual 0.12"""
    return ", ".join(
        f"{name} {one['distance']:.3g}" + ("" if one["relative"] is None else f" ({one['relative']:.1%})")
        for name, one in moved.items()
    )
