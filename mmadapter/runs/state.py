"""Where a run stands, from the files of its folder alone."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mmadapter.runs.objective import main_scores
from mmadapter.runs.process import is_alive
from mmadapter.terminal import duration

SILENT_SECONDS = 600  # a run elsewhere that has written nothing for so long may be dead: its word alone is not trusted
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")


@dataclass
class RunState:
    """One run; None where the files do not tell."""

    folder: Path
    state: str  # finished, running, silent, stopped, killed, failed, waiting, never started
    experiment: str | None = None
    reason: str | None = None  # the signal, the message, the queue's reason, what is not sure
    step: int | None = None
    steps: int | None = None
    best_validation: float | None = None
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None  # finished: the wall time of all attempts; else in training steps
    changed: float | None = None  # UNIX time of the last sign of life
    host: str | None = None
    slurm_job: str | None = None
    attempts: int | None = None  # how often it has been started

    @property
    def percent(self) -> float | None:
        return 100 * self.step / self.steps if self.step is not None and self.steps else None

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder), "percent": self.percent}


def state_of(
    folder: Path, *, slurm_job: str | None = None, queue: Mapping[str, tuple[str, str]] | None = None
) -> RunState:
    """The state of the run in `folder`, which need not exist yet.

    `slurm_job` is what its sweep knows; `queue` maps SLURM job -> (state, reason), None where there is no SLURM.
    """
    summary = read_json(folder / "finished.json")
    last = read_json(folder / "attempt.json")
    config = read_config(folder / "config.yaml")
    found = RunState(
        folder,
        "never started",
        experiment=config.get("experiment"),
        steps=last.get("total_steps"),
        scores=main_scores(evaluations(folder, config.get("evaluate") or ())),
        changed=last_change(folder),
        host=last.get("host"),
        slurm_job=slurm_job or last.get("slurm_job"),
        attempts=last.get("attempts"),
    )
    read_journal(folder / "metrics.jsonl", found)
    if summary:
        found.state, found.seconds = "finished", summary.get("wall_seconds", found.seconds)
        found.steps = (summary.get("training") or {}).get("steps") or found.steps or found.step
        found.reason = None
    elif last or config:
        set_unfinished(found, last)
    if found.state != "finished" and queue is not None and found.slurm_job:
        trust_queue(found, queue)
    return found


def set_unfinished(found: RunState, last: Mapping[str, Any]) -> None:
    """State and reason of a run that was begun and is not finished; `last` is its attempt.json."""
    said = last.get("state")
    if said == "failed":
        found.state, found.reason = "failed", last.get("message")
    elif said == "stopped":
        found.state, found.reason = "stopped", last.get("signal") or found.reason
    elif said == "running":
        found.state, found.reason = living(last, found.changed)
    else:
        found.state, found.reason = "stopped", found.reason or "how is not known: no attempt.json"


def living(last: Mapping[str, Any], changed: float | None) -> tuple[str, str | None]:
    """Whether an attempt that has not said its end goes on; sure only on its own machine."""
    if last.get("host") == socket.gethostname():
        return (
            ("running", None)
            if is_alive(last.get("pid"), last.get("pid_start"))
            else ("killed", "its process is gone without a word")
        )
    silence = time.time() - (changed or last.get("started") or 0)
    told = f"on {last.get('host')}, last sign of life {duration(max(0, silence))} ago"
    return ("running" if silence < SILENT_SECONDS else "silent"), told


def trust_queue(found: RunState, queue: Mapping[str, tuple[str, str]]) -> None:
    """What SLURM's queue knows better: waiting jobs, and jobs that are no longer there."""
    if (queued := queue.get(found.slurm_job or "")) is not None:
        state, reason = queued
        if state in WAITING:
            before = f", {found.state} before; attempts: {found.attempts}" if found.attempts else ""
            found.state, found.reason = "waiting", f"in the queue ({reason}){before}"
        elif found.state in ("silent", "never started"):
            found.state = "running"
    elif found.state in ("running", "silent") and found.host != socket.gethostname():
        found.state, found.reason = "killed", f"SLURM job {found.slurm_job} has left the queue, and the run said no end"


def read_journal(file: Path, found: RunState) -> None:
    """Step, seconds, lowest validation loss, last signal from metrics.jsonl; only lines with these are parsed."""
    last_step: bytes = b""
    for line in lines_of(file):
        if line.startswith(b'{"kind": "train"'):
            last_step = line
        elif line.startswith((b'{"kind": "validation"', b'{"kind": "event"')):
            note_record(found, parsed(line))
    record = parsed(last_step)
    found.step, found.seconds = record.get("step"), record.get("seconds")


def note_record(found: RunState, record: Mapping[str, Any]) -> None:
    """A validation or an event; a stop counts until the run goes on."""
    if record.get("kind") == "validation" and record.get("loss") is not None:
        best = found.best_validation
        found.best_validation = record["loss"] if best is None else min(record["loss"], best)
    elif record.get("event") in ("stopped", "resumed"):
        found.reason = record.get("signal")


def lines_of(file: Path) -> Iterator[bytes]:
    """Whole lines of a file that may be in writing, or may not be there."""
    if file.is_file():
        with open(file, "rb") as opened:
            yield from (line for line in opened if line.endswith(b"\n"))


def parsed(line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line or b"{}")
    except ValueError:  # a torn line
        return {}
    return record if isinstance(record, dict) else {}


def last_change(folder: Path) -> float | None:
    """When the run last wrote something, the progress of its parts and of its evaluation included."""
    names = ("metrics.jsonl", "attempt.json", "summary.json", "finished.json", "config.yaml", "eval/*/*")
    files = [path for name in names for base in (name, f"*/*/{name}") for path in folder.glob(base)]
    times = [path.stat().st_mtime for path in files if path.exists()]
    return max(times, default=None)


def evaluations(folder: Path, names: Any) -> dict[str, dict[str, Any]]:
    """Task -> metrics.json, of the run's own tasks."""
    found = {name: read_json(folder / "eval" / name / "metrics.json") for name in names}
    return {name: metrics for name, metrics in found.items() if metrics}


def read_config(file: Path) -> dict[str, Any]:
    """The settings of a run; empty where there are none, or half of them."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or half of one."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
