"""metrics.jsonl, what a run writes down while it goes, and its readers; boards that are asked for get the numbers."""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from mmadapter.errors import InputError
from mmadapter.files import make_folder, sync

if TYPE_CHECKING:
    from mmadapter.runs.boards import Board

METRICS_FILE = "metrics.jsonl"
SCALARS = ("loss", "lr", "grad_norm", "tokens_per_s", "perplexity")
MOST_PIXELS = 512  # on each side of a picture on a board


class Journal:
    """One JSON object a line, flushed at once; a continued run cuts the file back to its checkpoint first.

    With `writes=False`, on ranks other than 0, nothing is written.
    """

    def __init__(self, folder: Path, *, writes: bool = True, boards: Sequence[str] = (), name: str = "run") -> None:
        self.folder, self.path, self.name = folder, folder / METRICS_FILE, name
        self.wanted = tuple(boards) if writes else ()
        self._boards: list[Board] = []
        self._file: BinaryIO | None = None
        if writes:
            make_folder(folder)
            self._file = open(self.path, "ab")  # noqa: SIM115 (open as long as the run lasts)
            sync(folder)  # checkpoints count its bytes: after a power cut it must be there

    def open_boards(self, step: int) -> None:
        """Opens the boards that are wanted (names of BOARDS) for what comes after `step`."""
        if self.wanted and not self._boards:
            from mmadapter.runs.boards import BOARDS

            for name in self.wanted:
                self._boards.append(BOARDS[name](self.folder, self.name, step))

    def write(self, kind: str, record: Mapping[str, Any]) -> None:
        """Appends one line {"kind": ..., **record} and passes its numbers on to the boards."""
        if self._file is None:
            return
        record = finite_or_null(record)
        line = json.dumps({"kind": kind, **record}, default=str)
        self._file.write(line.encode() + b"\n")
        self._file.flush()
        if self._boards and kind in ("train", "validation"):
            values = numbers_of(kind, record)
            for board in self._boards:
                board.numbers(values, record["step"])
        elif self._boards and kind == "answers":
            self._show_answers(record)

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
        for board in self._boards:
            with contextlib.suppress(OSError):
                board.close()

    def _show_answers(self, record: Mapping[str, Any]) -> None:
        """A few samples with their pictures and answers, onto the boards."""
        from mmadapter.vision.images import read_image

        for number, sample in enumerate(record["samples"], start=1):
            lines = {"question": sample.get("question"), "answer": sample.get("answer")}
            lines["true"] = next(iter(sample.get("references") or ()), None)
            text = "\n".join(f"{name}: {line}" for name, line in lines.items() if line)
            picture = None
            if sample.get("image"):
                with contextlib.suppress(InputError):  # it is gone; the texts are shown all the same
                    picture = read_image(Path(sample["image"]))
                    picture.thumbnail((MOST_PIXELS, MOST_PIXELS))
            for board in self._boards:
                board.sample(f"answers/{number}", text, picture, record["step"])


def numbers_of(kind: str, record: Mapping[str, Any]) -> dict[str, float]:
    """What boards show of a line: name -> number."""
    values = {f"{kind}/{key}": record[key] for key in SCALARS if isinstance(record.get(key), (int, float))}
    losses = record.get("loss_by_source") or {}
    values |= {f"{kind}/loss/{name}": loss for name, loss in losses.items() if loss is not None}
    moved = record.get("movement") or {}
    values |= {f"movement/{name}": one["distance"] for name, one in moved.items() if one["distance"] is not None}
    values |= {f"memory/{name}": size for name, size in (record.get("memory") or {}).items()}
    for layer, gates in enumerate(record.get("gates") or ()):
        values[f"gates/layer_{layer}"] = sum(abs(gate) for gate in gates if gate is not None) / max(1, len(gates))
    return values


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
