"""Run folders and sweeps as training leaves them, written in a moment."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

from mmadapter.runs.state import process_start
from mmadapter.runs.sweep import begin_sweep, note_jobs

STEPS = 40


def made_run(
    folder: Path, state: str, *, score: float = 50.0, step: int | None = None, host: str | None = None, **facts: Any
) -> Path:
    """A run in one of the states; `facts` go into attempt.json. Its validation loss is 2 - score/100 at the end."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("experiment: made\nevaluate: [scienceqa]\n")
    done = STEPS if state == "finished" else 10 if step is None else step
    with open(folder / "metrics.jsonl", "w", encoding="utf-8") as file:
        for number in range(1, done + 1):
            file.write(
                json.dumps({"kind": "train", "step": number, "loss": 3 / number, "seconds": number * 0.5}) + "\n"
            )
            if number % 10 == 0:
                loss = 2 - score / 100 * number / STEPS
                file.write(json.dumps({"kind": "validation", "step": number, "loss": loss}) + "\n")
        file.write('{"kind": "train", "step": 99')  # a line in writing
    attempt = {"state": state, "host": host or socket.gethostname(), "total_steps": STEPS, **facts}
    if state == "running":
        attempt = {"pid": os.getpid(), "pid_start": process_start(os.getpid()), "started": time.time(), **attempt}
    (folder / "attempt.json").write_text(json.dumps(attempt))
    if state == "finished":
        summary = {"wall_seconds": 30.0, "training": {"steps": STEPS, "seconds": 20.0}, "peak": {"host_bytes": 9e8}}
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "finished.json").write_text(json.dumps(summary))
        task = folder / "eval" / "scienceqa"
        task.mkdir(parents=True)
        metrics = {"task": "scienceqa", "accuracy": {"Avg": score, "IMG": None, "NAT": score - 1}}
        (task / "metrics.json").write_text(json.dumps(metrics))
    return folder


def made_sweep(root: Path, jobs: dict[str, tuple[str, float]], **facts: Any) -> Path:
    """A sweep in root/sweeps/made; `jobs`: overrides (blank between) -> (state, score); state "" = never started.

    Without `swept`: the keys whose values differ, of a single job all.
    """
    folder = root / "sweeps" / "made"
    each = [dict(word.lstrip("+~").partition("=")[::2] for word in overrides.split()) for overrides in jobs]
    keys = dict.fromkeys(key for one in each for key in one)
    swept = [key for key in keys if len(each) == 1 or len({one.get(key) for one in each}) > 1]
    known = {"metric": "scienceqa.Avg", "direction": "maximize", "trials": None, "swept": swept}
    begin_sweep(folder, "mmadapter train -m ...", **{**known, **facts})
    noted = {}
    for number, (overrides, (state, score)) in enumerate(jobs.items()):
        run = root / f"made-{number}"
        if state:
            reason = {"message": "Out of memory"} if state == "failed" else {"signal": "SIGUSR2"}
            made_run(run, state, score=score, **reason)
        noted[number] = {"overrides": ["host=tiny", *overrides.split()], "run": str(run)}
    note_jobs(folder, noted)
    return folder
