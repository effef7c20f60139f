"""sweep.json in a sweep's folder: its command and its jobs.

{"command": str, "created": ISO time, "metric": str | null, "direction": str | null, "trials": int | null,
 "jobs": [{"number": 0, "overrides": ["seed=0"], "run": "runs/quickstart-1234abcd", "slurm_job": "12_0" | null,
           "failed": str | null}]}

`overrides` are those of the whole job; `failed` is the message of a job that ended with an error.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.evaluation.predictions import write_atomically

SWEEP_FILE = "sweep.json"


def read_sweep(folder: Path) -> dict[str, Any]:
    """The content of FOLDER/sweep.json. Raises InputError where there is none."""
    file = folder / SWEEP_FILE
    if not file.is_file():
        raise InputError(
            f"{folder} is no sweep: there is no {SWEEP_FILE} in it. Sweeps are in RUNS_ROOT/sweeps; "
            "python -m mmadapter.runs lists them."
        )
    return json.loads(file.read_text(encoding="utf-8"))


def begin_sweep(folder: Path, command: str, swept: Sequence[str] = (), **facts: Any) -> None:
    """Writes the sweep's file, or goes on with the one that is there. `swept`: the keys that the command sweeps."""
    known = read_sweep(folder) if (folder / SWEEP_FILE).is_file() else {}
    created = known.get("created", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    _write(
        folder,
        {
            "jobs": [],
            **known,
            "command": command,
            "created": created,
            **facts,
            **({"swept": list(swept)} if swept else {}),
        },
    )


def note_jobs(folder: Path, jobs: dict[int, dict[str, Any]]) -> None:
    """Adds jobs, or facts about them, by number; what is known besides (its SLURM job) stays."""
    content = read_sweep(folder)
    known = {job["number"]: job for job in content["jobs"]}
    for number, facts in jobs.items():
        before = known.get(number, {"number": number, "slurm_job": None, "failed": None})
        known[number] = {**before, **facts}
    content["jobs"] = [known[number] for number in sorted(known)]
    _write(folder, content)


def _write(folder: Path, content: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / SWEEP_FILE, json.dumps(content, indent=2) + "\n")


def run_of(folder: Path, job: dict[str, Any]) -> Path | None:
    """The run folder of a job. A relative one counts from where the sweep was started, or from the sweep's folder.

    The second way finds it when the command is given from elsewhere: RUNS_ROOT/sweeps/NAME and RUNS_ROOT/RUN.
    """
    if not job.get("run"):
        return None
    path = Path(job["run"])
    beside = folder.resolve().parents[1] / path.name
    return path if path.is_absolute() or path.exists() or not beside.exists() else beside
