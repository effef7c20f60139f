"""How far each group has come from where its run started: distances of parameters, by group."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_from_bytes
from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from mmadapter.distributed.deepspeed import write_value
from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import InputError
from mmadapter.files import write_atomically
from mmadapter.methods.groups import Group, TrainableParameter
from mmadapter.runs.checkpoint_files import START_FILE, digest_of
from mmadapter.training.engine import differing_shapes

Moved = dict[str, dict[str, float | None]]


class RunStart:
    """The parameters as the run started: what movement is measured from, and what frozen roles stay at.

    Made before any checkpoint is loaded. It is kept beside the checkpoints, which hold nothing but what trains, so that
    a continued run has the same start even where that could not be drawn or read again (another machine, an
    `adapter.start` that has changed).
    """

    def __init__(
        self, groups: Sequence[Group], trainable: Sequence[TrainableParameter], folder: Path, ranks: Ranks
    ) -> None:
        self.groups, self.file, self.ranks = groups, folder / START_FILE, ranks
        self.parameters = {item.name: item.parameter for item in trainable}
        self.values = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def digest(self) -> str:
        """Changes with every name and every bit of the start; checkpoints keep it."""
        return digest_of(self.values)

    def save(self) -> None:
        """Writes the start down: a new run. Only rank 0 does."""
        if self.ranks.is_first:
            tensors = {name: tensor.cpu().contiguous() for name, tensor in self.values.items()}
            write_atomically(self.file, tensors_to_bytes(tensors))

    @torch.no_grad()
    def restore(self, digest: str) -> list[str]:
        """Takes up the start that was written down, whose digest a checkpoint has kept; says what was mended.

        Where the file is lost or damaged, the present start, drawn anew, serves if it is the same. Raises InputError
        where it is another, or does not fit this adapter.
        """

        def read() -> bytes:
            try:
                return self.file.read_bytes()
            except OSError:  # not there, or a disk that does not give it
                return b""

        content = self.ranks.decide_bytes(read)
        problem = "not what it was" if content else "missing"
        try:
            there = tensors_from_bytes(content)
        except SafetensorError as error:
            there = {}
            problem = f"damaged ({error})" if content else problem
        if digest == digest_of(there):
            if differing := differing_shapes(there, self.values):
                raise InputError(
                    f"{self.file} does not fit this adapter: {differing}. Use the settings it was made with, or "
                    "another folder (run=NAME)."
                )
            self.values = {name: there[name].to(tensor.device) for name, tensor in self.values.items()}
            for name, parameter in self.parameters.items():
                write_value(parameter, self.values[name])
            return []
        if digest != self.digest():
            raise InputError(
                f"{self.file}, what the run started from, is {problem}, and its settings do not give the same start "
                "here. Put the file back, or start anew in another folder (run=NAME)."
            )
        self.save()
        return [f"{self.file} was {problem}; it is written again, the settings give the same start"]

    @torch.no_grad()
    def movement(self) -> Moved:
        """Group -> Euclidean `distance` from its start, and `relative` to the start's norm (None where that is 0)."""
        moved: Moved = {}
        for group in self.groups:
            distance = norm([parameter.detach() - self.values[name] for name, parameter in group.parameters])
            start = norm([self.values[name] for name, _ in group.parameters])
            moved[group.name] = {"distance": distance, "relative": distance / start if start else None}
        return moved


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors together, summed in float64."""
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())


def moved_text(moved: Moved) -> str:
    """instruction 1.23 (4.5 %), visual 0.12"""
    return ", ".join(
        f"{name} {one['distance']:.3g}" + ("" if one["relative"] is None else f" ({one['relative']:.1%})")
        for name, one in moved.items()
    )
