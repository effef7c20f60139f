"""How far each group has come from where its run started: distances of parameters, by group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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

START_FILE = "start.safetensors"
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
        self._parameters = {item.name: item.parameter for item in trainable}
        self._take({name: parameter.detach().clone() for name, parameter in self._parameters.items()})

    def digest(self) -> str:
        """Changes with every name and every bit of the start; checkpoints keep it."""
        return _digest(self._values)

    def save(self) -> None:
        """Writes the start down: a new run. Only rank 0 does."""
        if self.ranks.is_first:
            write_atomically(
                self.file, tensors_to_bytes({name: t.cpu().contiguous() for name, t in self._values.items()})
            )

    def restore(self, digest: str | None) -> list[str]:
        """Takes up the start that was written down, whose digest a checkpoint has kept; says what was mended.

        Where the file is lost or damaged, the present start, drawn anew, serves if it is the same. Raises InputError
        where it is another, or does not fit this adapter.
        """
        there, problem = _parsed(self.ranks.decide_files(lambda: _contents(self.file)))
        if there is not None and digest in (None, _digest(there)):
            self._put_back(there)
            return []
        if digest not in (None, self.digest()):
            raise InputError(
                f"{self.file}, what the run started from, is {problem or 'not what it was'}, and its settings do not "
                "give the same start here. Put the file back, or start anew in another folder (run=NAME)."
            )
        self.save()
        return [
            f"{self.file} was {problem or 'not what it was'}; it is written again, the settings give the same start"
        ]

    @torch.no_grad()
    def _put_back(self, there: dict[str, Tensor]) -> None:
        shapes = {name: tuple(tensor.shape) for name, tensor in there.items()}
        here = {name: tuple(tensor.shape) for name, tensor in self._values.items()}
        if differing := sorted(name for name in shapes.keys() | here.keys() if shapes.get(name) != here.get(name)):
            listed = "; ".join(
                f"{n} is {shapes.get(n, 'missing')} there, {here.get(n, 'missing')} here" for n in differing[:5]
            )
            raise InputError(
                f"{self.file} does not fit this adapter: {listed} ({len(differing)} tensors differ). Use the settings "
                "it was made with, or another folder (run=NAME)."
            )
        self._take({name: there[name].to(tensor.device) for name, tensor in self._values.items()})
        for name, parameter in self._parameters.items():
            write_value(parameter, self._values[name])

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


def _contents(file: Path) -> dict[str, bytes]:
    """The bytes of a file, or why there are none."""
    try:
        return {"start": file.read_bytes()}
    except FileNotFoundError:
        return {"problem": b"missing"}
    except OSError as error:
        return {"problem": f"damaged ({error})".encode()}


def _parsed(contents: dict[str, bytes]) -> tuple[dict[str, Tensor] | None, str | None]:
    """The tensors of a file, or what is wrong with it."""
    if "start" not in contents:
        return None, contents["problem"].decode()
    try:
        return tensors_from_bytes(contents["start"]), None
    except SafetensorError as error:
        return None, f"damaged ({error})"


def _digest(values: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(values.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def norm(tensors: Sequence[Tensor]) -> float:
    """Euclidean norm over all tensors together, summed in float64."""
    return float(torch.stack([tensor.double().square().sum() for tensor in tensors]).sum().sqrt())


def moved_text(moved: Moved) -> str:
    """instruction 1.23 (4.5 %), visual 0.12"""
    return ", ".join(
        f"{name} {one['distance']:.3g}" + ("" if one["relative"] is None else f" ({one['relative']:.1%})")
        for name, one in moved.items()
    )
