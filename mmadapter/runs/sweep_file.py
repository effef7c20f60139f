"""sweep.json in a sweep's folder: its command and its jobs. docs/formats.md says the keys.

Written by the sweep (`begin_sweep`, `note_jobs`) and by the client of a cluster (`note_jobs`), never by a job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmadapter.errors import InputError
from mmadapter.files import write_atomically

SWEEP_FILE = "sweep.json"


def sweeps_in(folder: Path) -> list[Path]:
    """The folder itself, or those in its sweeps/ (or beside it, where it is sweeps/)."""
    if (folder / SWEEP_FILE).is_file():
        return [folder]
    return sorted(file.parent for name in ("sweeps/*", "*") for file in folder.glob(f"{name}/{SWEEP_FILE}"))


def read_sweep(folder: Path) -> dict[str, Any]:
    """The content of FOLDER/sweep.json. Raises InputError where there is none, and where it is damaged."""
    file = folder / SWEEP_FILE
    if not file.is_file():
        raise InputError(
            f"{folder} is no sweep: there is no {SWEEP_FILE} in it. Sweeps are in RUNS_ROOT/sweeps; "
            "python -m mmadapter.runs lists them."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, str(error)) from error
    jobs = content.get("jobs") if isinstance(content, dict) else None
    if not isinstance(jobs, list) or not all(
        isinstance(job, dict) and isinstance(job.get("number"), int) for job in jobs
    ):
        raise _damaged(file, 'not {"jobs": [{"number": 0, ...}, ...], ...}')
    return content


def _damaged(file: Path, found: str) -> InputError:
    return InputError(
        f"{file} is damaged: {found}. Delete it and give the sweep's command again: that writes it anew, and finished "
        "runs are found again. SLURM jobs of this sweep that still wait or run are in this file alone: look at "
        "`squeue --me` first, and end them with scancel."
    )


def begin_sweep(folder: Path, command: str, swept: Sequence[str] | None = None, **facts: Any) -> None:
    """Writes the sweep's file, or goes on with the one that is there; `swept`: the keys that differ between jobs."""
    known = read_sweep(folder) if (folder / SWEEP_FILE).is_file() else {}
    created = known.get("created", time.strftime("%Y-%m-%dT%H:%M:%S%z"))
    named = {} if swept is None else {"swept": list(swept)}
    _write(folder, {"jobs": [], **known, "command": command, "created": created, **named, **facts})


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
