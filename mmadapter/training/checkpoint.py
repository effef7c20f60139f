"""Checkpoints free of engine and world size: trainable tensors, Adam moments, positions, random states."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from safetensors.torch import save as tensors_to_bytes
from torch import Tensor

from mmadapter import files
from mmadapter.distributed.ranks import Ranks
from mmadapter.errors import NO_ROOM, InputError
from mmadapter.runs.checkpoint_files import DAMAGE, FORMAT, STATE_FILE, checked_files, other_version, steps_in
from mmadapter.training.engine import EngineState

WRITING = ".writing-"  # folders that are not (yet) a checkpoint
REPLACED = ".replaced-"  # the earlier save of a step, while a new one takes its name
DAMAGED = "damaged-"
LATER = {"host_weights", "layout"}  # fields of Position that a checkpoint of an earlier version may lack


@dataclass
class Position:
    """Where a run stands. Everything that the loop needs to go on besides tensors and random states."""

    step: int = 0  # optimizer steps done
    validated_step: int = 0  # the last step that was validated
    best_loss: float | None = None
    best_step: int | None = None
    nonfinite_steps: int = 0
    seconds: float = 0.0  # training time over all attempts
    supervised_tokens: int = 0
    loss: float | None = None  # of the last step
    journal_bytes: int = 0  # length of metrics.jsonl
    schedule: dict[str, float] = field(default_factory=dict)
    start: str = ""  # digest of the parameters that the run started from
    host_dtype: str = ""  # of the frozen weights
    host_weights: str = ""  # digest of the frozen weights; "" where it is not known
    data: dict[str, str] = field(default_factory=dict)  # source -> digest of its encoded samples
    layout: str = "padded"  # of the micro-batches


@dataclass
class Snapshot:
    """A whole checkpoint in memory."""

    position: Position
    engine: EngineState
    random_tensors: dict[str, Tensor]
    random_values: dict[str, Any]


class CheckpointFolder:
    """RUN/checkpoints: `step-NNNNNN/` folders that appear whole or not at all; the last `keep` and the best stay."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        self.folder, self.keep = folder, keep

    def save(self, snapshot: Snapshot) -> Path:
        """Writes one checkpoint and updates the pointers. Raises InputError where the disk is full; nothing is lost."""
        final = self.folder / step_name(snapshot.position.step)
        temporary, aside = self.folder / f"{WRITING}{final.name}", self.folder / f"{REPLACED}{final.name}"
        contents = snapshot_files(snapshot)
        try:
            files.make_folder(self.folder)
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            for name, content in contents.items():
                files.write_durably(temporary / name, content)
            files.sync(temporary)
            if final.exists():  # the same step saved twice: the old one steps aside first
                shutil.rmtree(aside, ignore_errors=True)
                final.rename(aside)
            temporary.rename(final)
            files.sync(self.folder)
            shutil.rmtree(aside, ignore_errors=True)
            self._write_pointers(snapshot.position)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if error.errno not in NO_ROOM:
                raise
            there = self.steps()
            kept = f"{there[-1]} is intact" if there else "there is no earlier checkpoint"
            needed = sum(map(len, contents.values())) / 1e6
            free = shutil.disk_usage(self.folder).free / 1e6 if self.folder.exists() else 0
            raise InputError(
                f"No room to save a checkpoint in {self.folder}: {needed:.1f} MB needed, {free:.1f} MB free on the "
                f"disk ({error.strerror}). Nothing half-written was left, and {kept}. "
                "Make room and run the same command again: it goes on from there."
            ) from error
        self._prune(snapshot.position)
        return final

    def load_newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest checkpoint that is whole, and messages about damaged ones, which are set aside.

        (None, []) where there is none at all. Raises InputError where there are some, and all are damaged, or where
        the disk does not give them; these stay.
        """
        self._clear_leftovers()
        damaged: dict[Path, Exception] = {}
        for path in reversed(self.steps()):
            try:
                snapshot = read_snapshot(path)
            except DAMAGE as error:
                damaged[path] = error
                continue
            except OSError as error:  # a disk that does not answer says nothing about the checkpoint
                raise InputError(
                    f"{path} cannot be read now ({error.strerror or error}). Nothing was changed: see to the disk, and "
                    "run the same command again."
                ) from error
            messages = [
                f"checkpoint {one} is damaged ({error}); it is set aside and the one before it is used"
                for one, error in damaged.items()
            ]
            for one in damaged:
                aside = one.with_name(DAMAGED + one.name)
                shutil.rmtree(aside, ignore_errors=True)
                one.rename(aside)
            self._write_pointers(snapshot.position)
            return snapshot, messages
        if damaged:
            listed = "".join(f"\n  {path} is damaged ({error})" for path, error in damaged.items())
            raise InputError(f"No checkpoint can be read:{listed}\nDelete {self.folder} to train from the start.")
        return None, []

    def load_newest_together(self, ranks: Ranks) -> tuple[Snapshot | None, list[str]]:
        """What `load_newest` gives on rank 0, on every rank. Collective."""
        if ranks.world_size == 1:
            return self.load_newest()
        contents: dict[str, bytes] = {}

        def read() -> tuple[list[str], list[str]]:
            snapshot, messages = self.load_newest()
            contents.update({} if snapshot is None else snapshot_files(snapshot))
            return messages, list(contents)

        messages, names = ranks.decide(read)
        received = {name: ranks.decide_bytes(partial(contents.__getitem__, name)) for name in names}
        return snapshot_of(self.folder, received.__getitem__) if names else None, messages

    def steps(self) -> list[Path]:
        """Folders of all checkpoints, oldest first."""
        return steps_in(self.folder)

    def _write_pointers(self, position: Position) -> None:
        pointers: dict[str, dict[str, Any]] = {"last.json": {"step": position.step, "folder": step_name(position.step)}}
        if position.best_step is not None:
            best = {"step": position.best_step, "folder": step_name(position.best_step), "loss": position.best_loss}
            pointers["best.json"] = best
        for name, content in pointers.items():
            files.write_atomically(self.folder / name, json.dumps(content) + "\n")

    def _prune(self, position: Position) -> None:
        kept = {path.name for path in self.steps()[-self.keep :]}
        if position.best_step is not None:
            kept.add(step_name(position.best_step))
        for path in self.steps():
            if path.name not in kept:
                aside = path.with_name(f"{WRITING}old-{path.name}")  # a half-deleted one is never taken for whole
                path.rename(aside)
                shutil.rmtree(aside, ignore_errors=True)

    def _clear_leftovers(self) -> None:
        for path in self.folder.glob(f"{REPLACED}*"):  # killed between two renames: the earlier save is still whole
            final = path.with_name(path.name.removeprefix(REPLACED))
            if not final.exists():
                path.rename(final)
            else:
                shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(f"{WRITING}*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(files.LEFTOVERS):
            path.unlink(missing_ok=True)


def step_name(step: int) -> str:
    return f"step-{step:06d}"


def snapshot_files(snapshot: Snapshot) -> dict[str, bytes]:
    """File names and contents of a checkpoint; state.json holds the digests of the others and of itself."""
    state = snapshot.engine
    optimizer = {f"{kind}/{name}": t for kind, tensors in state.moments.items() for name, t in tensors.items()}
    contents = {
        "trainable.safetensors": tensors_to_bytes(state.parameters),
        "optimizer.safetensors": tensors_to_bytes(optimizer),
        "random.safetensors": tensors_to_bytes(snapshot.random_tensors),
    }
    content = {
        "format": FORMAT,
        "position": asdict(snapshot.position),
        "adam_steps": state.steps,
        "random": snapshot.random_values,
        "digests": {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()},
    }
    body = json.dumps(content)
    whole = json.dumps({"digest": hashlib.sha256(body.encode()).hexdigest(), "body": body})
    return contents | {STATE_FILE: whole.encode()}


def read_snapshot(folder: Path) -> Snapshot:
    """Reads and checks one checkpoint. Raises ValueError, KeyError or OSError where it is not whole, and InputError
    where another version wrote it."""
    return snapshot_of(folder, lambda name: (folder / name).read_bytes())


def snapshot_of(folder: Path, read: Callable[[str], bytes]) -> Snapshot:
    """The checkpoint in the files of `folder`, whose contents `read(name)` gives; raises as `read_snapshot`."""
    content, contents = checked_files(read)
    differing = sorted((content.get("position", {}).keys() ^ {one.name for one in fields(Position)}) - LATER)
    if content["format"] != FORMAT or differing:
        raise other_version(folder, content["format"], differing)
    moments: dict[str, dict[str, Tensor]] = {"exp_avg": {}, "exp_avg_sq": {}}
    for key, tensor in contents["optimizer.safetensors"].items():
        kind, name = key.split("/", 1)
        moments[kind][name] = tensor
    position = Position(**content["position"])
    engine = EngineState(contents["trainable.safetensors"], moments, content["adam_steps"], position.step)
    return Snapshot(position, engine, contents["random.safetensors"], content["random"])
