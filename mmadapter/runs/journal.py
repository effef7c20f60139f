"""metrics.jsonl, what a run writes down while it goes, and its readers; TensorBoard by default, W&B when asked."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from mmadapter.errors import InputError
from mmadapter.files import make_folder, sync

METRICS_FILE = "metrics.jsonl"
SCALARS = ("loss", "lr", "grad_norm", "tokens_per_s", "perplexity")


class Journal:
    """One JSON object a line, flushed at once; a continued run cuts the file back to its checkpoint first.

    With `writes=False`, on ranks other than 0, nothing is written.
    """

    def __init__(
        self, folder: Path, *, writes: bool = True, tensorboard: bool = False, wandb: bool = False, name: str = "run"
    ) -> None:
        self.folder, self.path, self.name = folder, folder / METRICS_FILE, name
        self.wants_tensorboard, self.wants_wandb = writes and tensorboard, writes and wandb
        self._tensorboard: Any = None
        self._wandb: Any = None
        self._file: BinaryIO | None = None
        if writes:
            make_folder(folder)
            self._file = open(self.path, "ab")  # noqa: SIM115 (open as long as the run lasts)
            sync(folder)  # checkpoints count its bytes: after a power cut it must be there

    def open_boards(self, step: int) -> None:
        """Opens TensorBoard and W&B, where wanted; points that a killed attempt wrote after `step` are purged."""
        if self.wants_tensorboard and self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step + 1)
        if self.wants_wandb and self._wandb is None:
            try:
                import wandb
            except ImportError as error:
                raise InputError(
                    "training.wandb=true, but the package is not installed. To fix: pip install wandb"
                ) from error
            self._wandb = wandb.init(
                project="mmadapter", name=self.name, id=self.name, resume="allow", dir=str(self.folder)
            )

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Appends one line {"kind": ..., **record} and passes its numbers on to the boards."""
        if self._file is None:
            return
        record = finite_or_null(record)
        line = json.dumps({"kind": kind, **record}, default=str)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if kind in ("train", "validation") and (self._tensorboard is not None or self._wandb is not None):
            self._write_boards(kind, record)

    def event(self, event: str, **record: Any) -> None:
        """Appends a line about something that happened: resumed, skipped, saved, stopped, ..."""
        self.write("event", {"event": event, "time": round(time.time(), 3), **record})

    def position(self) -> int:
        """Length in bytes; all of it is on the disk when this returns."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def cut_back(self, position: int, step: int) -> list[str]:
        """Removes what came after the last checkpoint (of `step`, when the file was `position` bytes long).

        A file that is shorter than it was then (edited, or lost) keeps its leading whole lines of steps up to `step`.
        Returns messages that say so.
        """
        if self._file is None:
            return []
        size, messages = self.path.stat().st_size, []
        if size < position:
            messages = [f"{self.path} has {size:,} bytes, {position:,} at step {step}: lines of earlier steps are lost"]
            position = 0
            for line in self.path.read_bytes().splitlines(keepends=True):
                record = parse_line(line)
                if record is None or record.get("step", 0) > step:
                    break
                position += len(line)
        self._file.truncate(position)
        self._file.seek(position)
        return messages

    def close(self) -> None:
        with contextlib.suppress(OSError):  # a full disk was reported when the line was written
            if self._file is not None:
                self._file.close()
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):
                self._tensorboard.close()
        if self._wandb is not None:
            self._wandb.finish()

    def _write_boards(self, kind: str, record: Mapping[str, Any]) -> None:
        values = {f"{kind}/{key}": record[key] for key in SCALARS if isinstance(record.get(key), (int, float))}
        values |= {
            f"{kind}/loss/{name}": loss for name, loss in record.get("loss_by_source", {}).items() if loss is not None
        }
        values |= {f"movement/{name}": moved["distance"] for name, moved in record.get("movement", {}).items()}
        for layer, gates in enumerate(record.get("gates") or ()):
            values[f"gates/layer_{layer}"] = sum(abs(gate) for gate in gates if gate is not None) / max(1, len(gates))
        if self._tensorboard is not None:
            for key, value in values.items():
                self._tensorboard.add_scalar(key, value, record["step"])
        if self._wandb is not None:
            self._wandb.log(values, step=record["step"])


def finite_or_null(value: Any) -> Any:
    """The same value with null in place of NaN and infinities, which JSON has no number for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite_or_null(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite_or_null(item) for item in value]
    return value


def parse_line(line: bytes) -> dict[str, Any] | None:
    """The record of one line, None where it is torn, or no record of ours."""
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step", 0), int):
        return None
    if record.get("kind") in ("train", "validation"):
        loss = record.setdefault("loss", None)
        return record if "step" in record and (loss is None or isinstance(loss, int | float)) else None
    return record


def read_metrics(path: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """All whole lines of a metrics file, or those of one kind; none where there is no such file."""
    return list(_records(path, kind))


def last_record(path: Path, kind: str) -> dict[str, Any]:
    """The last whole line of one kind, empty where there is none; only this line is parsed."""
    return next(_records(path, kind, backwards=True), {})


def _records(path: Path, kind: str | None, backwards: bool = False) -> Iterator[dict[str, Any]]:
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    named = b"" if kind is None else f'"{kind}"'.encode()  # other lines need not be parsed
    for line in reversed(lines) if backwards else lines:
        if named in line and (record := parse_line(line)) is not None and kind in (None, record.get("kind")):
            yield record


def perplexity(loss: float) -> float:
    """exp(loss), infinite where that is too large to write."""
    return math.exp(loss) if loss < 700 else math.inf
