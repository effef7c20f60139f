"""Where a run stands: from the files in its folder, its process, and SLURM's queue."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import yaml

from mmadapter.files import MISSING, LeftOut, as_written, read_as_written
from mmadapter.runs.journal import METRICS_FILE, last_record, read_metrics
from mmadapter.sweeps.settings import VALIDATION_LOSS
from mmadapter.tasks import task_class
from mmadapter.tasks.section import metrics_of
from mmadapter.terminal import duration

SILENT_SECONDS = 600  # a run on another machine that wrote nothing for so long is no longer believed to run
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT")
SQUEUE = ["squeue", "--me", "--noheader", "--array", "--format=%i|%T|%r"]

Record = dict[str, Any]
Queue = Mapping[str, tuple[str, str]] | None  # SLURM job -> (state, reason); None = no SLURM, or no answer


# What we write into a run folder, as far as it is read again to show the run (`as_written`).


class ShownConfig(TypedDict, total=False):
    """config.yaml."""

    experiment: str
    embedded: str | None
    evaluate: list[str]
    variants: dict[str, Any]
    tasks: dict[str, Any]
    vision: dict[str, Any] | None
    data: dict[str, Any] | None


class Attempt(TypedDict, total=False):
    """attempt.json."""

    state: str
    host: str
    pid: int
    pid_start: int | None
    slurm_job: str | None
    started: float
    ended: float
    attempts: int
    earlier_seconds: float
    total_steps: int
    message: str | None
    signal: str | None


class Trained(TypedDict, total=False):
    steps: int
    seconds: float
    exchanged_bytes: int | None


class Peak(TypedDict, total=False):
    host_bytes: float
    gpu_bytes: float
    processes: list[dict[str, float]]


class Summary(TypedDict, total=False):
    """summary.json and finished.json."""

    wall_seconds: float
    attempts: int
    training: Trained | None
    peak: Peak
    evaluation: dict[str, Any]


class Moved(TypedDict):
    distance: float | None
    relative: float | None


class AtStep(TypedDict):
    step: int
    loss: float | None


class Step(AtStep, total=False):
    """A line of metrics.jsonl about a step or a validation."""

    seconds: float
    loss_by_source: dict[str, float | None]
    lr: float | None
    grad_norm: float | None
    grad_norm_by_group: dict[str, float | None]
    supervised_tokens: int
    tokens_per_s: float | None
    gates: list[list[float | None]]
    movement: dict[str, Moved]
    memory: dict[str, float]


class Event(TypedDict, total=False):
    """A line about something that happened."""

    event: str
    signal: str


class RunFolder:
    """What the files of a run folder say, each read when it is first asked for; a missing or cut one reads as empty.

    What is not of the type that a run writes counts as missing, too, and stands in `left_out`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left_out = LeftOut()

    @cached_property
    def config(self) -> Record:
        try:
            content = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError):
            return {}
        return self._typed(content, ShownConfig, "config.yaml") if content is not None else {}

    @cached_property
    def attempt(self) -> Record:
        return self._json("attempt.json", Attempt)

    @cached_property
    def summary(self) -> Record:
        """finished.json; until the run is finished empty."""
        return self._json("finished.json", Summary)

    @cached_property
    def evaluations(self) -> dict[str, Record]:
        """Task -> metrics.json, of the run's own tasks."""
        names = self.config.get("evaluate") or ()
        found = {name: metrics_of(self.folder, f"eval/{name}", self.left_out) for name in names}
        return {name: metrics for name, metrics in found.items() if metrics}

    @cached_property
    def train(self) -> list[Record]:
        return self._lines("train", Step)

    @cached_property
    def last_step(self) -> Record:
        record = last_record(self.folder / METRICS_FILE, "train")
        return self._typed(record, Step, METRICS_FILE) if record else {}

    @cached_property
    def validation(self) -> list[Record]:
        return self._lines("validation", Step)

    @cached_property
    def events(self) -> list[Record]:
        return self._lines("event", Event)

    @cached_property
    def best_validation_loss(self) -> float | None:
        losses = [record["loss"] for record in self.validation if record.get("loss") is not None]  # null: not finite
        return min(losses, default=None)

    def scores(self, *, main: bool) -> dict[str, float]:
        """TASK.SCORE -> value: the scores that stand in tables (`main`), or all of them, these first."""
        mains: dict[str, float] = {}
        others: dict[str, float] = {}
        for name, metrics in self.evaluations.items():
            if (task := task_class(metrics, name)) is not None:
                for score, value in task.values(metrics).items():
                    (mains if score in task.MAIN_SCORES else others)[f"{name}.{score}"] = value
        return mains if main else mains | others

    def metric(self, name: str) -> float | None:
        """TASK.SCORE, or the lowest validation loss; None where the run does not have it (yet)."""
        return self.best_validation_loss if name == VALIDATION_LOSS else self.scores(main=False).get(name)

    @property
    def last_change(self) -> float | None:
        """When the run last wrote something (UNIX time), the progress of its parts and of its evaluation included."""
        names = (METRICS_FILE, "attempt.json", "summary.json", "finished.json", "config.yaml", "eval/*/*")
        files = [path for name in names for base in (name, f"*/*/{name}") for path in self.folder.glob(base)]
        return max((path.stat().st_mtime for path in files if path.exists()), default=None)

    def _json(self, name: str, kind: Any) -> Record:
        content = read_as_written(self.folder / name, kind, name, self.left_out)
        return {} if content is MISSING else content

    def _lines(self, kind: str, of_each: Any) -> list[Record]:
        """The lines of metrics.jsonl of a kind."""
        lines = read_metrics(self.folder / METRICS_FILE, kind)
        found: list[Record] = as_written(lines, list[of_each], METRICS_FILE, self.left_out, kind)
        return found

    def _typed(self, content: Any, kind: Any, file: str) -> Record:
        found = as_written(content, kind, file, self.left_out)
        return {} if found is MISSING else found


@dataclass
class RunState:
    """One run; None where the files do not tell."""

    folder: Path
    state: str  # finished, running, silent, stopped, killed, failed, waiting, never started
    experiment: str | None
    reason: str | None  # the signal, the message, the queue's reason, what is not certain
    step: int | None
    steps: int | None
    best_validation: float | None
    scores: dict[str, float]
    seconds: float | None  # finished: the wall time of all attempts; else in training steps
    changed: float | None  # UNIX time of the last sign of life
    host: str | None
    slurm_job: str | None
    attempts: int | None  # how often it has been started
    left_out: list[str] = field(default_factory=list)  # what in its files is not as a run writes it, and is not shown
    sweep: str | None = None  # the name of the sweep that it is job number `job` of
    job: int | None = None

    @property
    def name(self) -> str:
        return f"{self.sweep}#{self.job} {self.folder}" if self.sweep else str(self.folder)

    @property
    def percent(self) -> float | None:
        return 100 * self.step / self.steps if self.step is not None and self.steps else None


def state_of(run: RunFolder, *, slurm_job: str | None = None, queue: Queue = None) -> RunState:
    """The state of a run, whose folder need not exist yet; `slurm_job`: the job that its sweep knows of."""
    last, summary, changed = run.attempt, run.summary, run.last_change
    step, seconds, steps = run.last_step.get("step"), run.last_step.get("seconds"), last.get("total_steps")
    slurm_job, attempts = slurm_job or last.get("slurm_job"), last.get("attempts")

    # what the folder says; a stop counts until the run goes on
    stops = [event.get("signal") for event in run.events if event.get("event") in ("stopped", "resumed")]
    signal = stops[-1] if stops else None
    state, reason = "never started", signal
    if summary:
        state, reason, seconds = "finished", None, summary.get("wall_seconds", seconds)
        steps = (summary.get("training") or {}).get("steps") or steps or step
    elif last.get("state") == "failed":
        state, reason = "failed", last.get("message")
    elif last.get("state") == "stopped":
        state, reason = "stopped", last.get("signal") or signal
    elif last.get("state") == "running" and last.get("host") == socket.gethostname():
        alive = is_alive(last.get("pid"), last.get("pid_start"))
        state, reason = ("running", None) if alive else ("killed", "its process is gone and left no message")
    elif last.get("state") == "running":  # on another machine: nothing is certain
        silence = max(0.0, time.time() - (changed or last.get("started") or 0))
        state = "running" if silence < SILENT_SECONDS else "silent"
        reason = f"on {last.get('host')}, last sign of life {duration(silence)} ago"
    elif last or run.config:
        state, reason = "stopped", signal or "how is not known: no attempt.json"

    # what SLURM knows better: jobs that wait, and jobs that are no longer there
    if state != "finished" and queue is not None and slurm_job:
        if slurm_job in queue and queue[slurm_job][0] in WAITING:
            before = f", {state} before; attempts: {attempts}" if attempts else ""
            state, reason = "waiting", f"in the queue ({queue[slurm_job][1]}){before}"
        elif slurm_job in queue and state in ("silent", "never started"):
            state = "running"
        elif slurm_job not in queue and state in ("running", "silent") and last.get("host") != socket.gethostname():
            state, reason = "killed", f"SLURM job {slurm_job} has left the queue, and the run did not say how it ended"

    return RunState(
        folder=run.folder,
        state=state,
        experiment=run.config.get("experiment"),
        reason=reason,
        step=step,
        steps=steps,
        best_validation=run.best_validation_loss,
        scores=run.scores(main=True),
        seconds=seconds,
        changed=changed,
        host=last.get("host"),
        slurm_job=slurm_job,
        attempts=attempts,
        left_out=run.left_out.lines(),
    )


def process_start(pid: int) -> int | None:
    """When a process started, in ticks since the machine did; None where the system does not tell (no /proc)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(text.rpartition(")")[2].split()[19])  # the 22nd field; the 2nd, in brackets, may hold blanks


def is_alive(pid: int | None, start: int | None) -> bool:
    """Whether process `pid` of this machine exists, and is the one that started at `start`: numbers are used again."""
    if pid is None or pid < 1:
        return False
    if os.name == "nt":  # where signal 0 would be a Ctrl-C; nothing tells that it has ended
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):  # no number of a process is as large as that
        return False
    except PermissionError:  # another user's
        pass
    now = process_start(pid)
    return start is None or now is None or now == start


def jobs_in_queue() -> Queue:
    """This user's jobs ("12", "12_3") in SLURM's queue; None where there is no SLURM, or it does not answer."""
    if shutil.which(SQUEUE[0]) is None:
        return None
    try:
        answer = subprocess.run(SQUEUE, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split("|") for line in answer.stdout.splitlines() if line.count("|") == 2]
    return {number.strip(): (state.strip(), reason.strip()) for number, state, reason in rows}


def counts(runs: Iterable[RunState]) -> str:
    """How many runs are in which state: "3 finished, 1 failed"; one that is a job of two sweeps counts once."""
    states = list({run.folder.resolve(): run.state for run in runs}.values())
    return ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
