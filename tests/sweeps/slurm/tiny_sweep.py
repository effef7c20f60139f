"""Sweeps of short runs on the tiny models, and what they leave."""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from tests.sweeps.slurm.cluster import Cluster, hold_until_signalled, wait_until

NUMBER = re.compile(r"job (\d+): SLURM job (\S+)")
CONTINUED = re.compile(r"continuing at step (\d+)")


def settings(inputs: Path, *more: str) -> list[str]:
    """One short run: 600 steps, saves on its own schedule, one evaluation, no comparison."""
    return [
        f"host.path={inputs / 'host'}",
        f"vision.model={inputs / 'clip'}",
        "vision.layers=[1,2]",
        f"data.root={inputs / 'world'}",
        "adapter.prompts.layers=2",
        "optimizer.epochs=60",
        "optimizer.batch_size=8",
        "optimizer.micro_batch_size=4",
        "training.save_every_steps=50",
        "training.log_every_steps=100",
        "training.tensorboard=false",
        "tasks.scienceqa.limit=4",
        "tasks.scienceqa.generation.max_new_tokens=4",
        "evaluate=[scienceqa]",
        "~comparison",
        *more,
    ]


def submit(cluster: Cluster, folder: Path, *arguments: str) -> dict[int, str]:
    """Submits a sweep without waiting; number of the job -> number in SLURM's queue."""
    told = cluster.train(folder, "-m", "cluster=slurm", "cluster.wait=false", *arguments)
    assert told.returncode == 0, told.stdout + told.stderr
    found = {int(number): slurm for number, slurm in NUMBER.findall(told.stdout)}
    assert found, told.stdout
    return found


def sweep_jobs(folder: Path) -> list[dict[str, Any]]:
    """The jobs of the only sweep below `folder`."""
    (file,) = folder.rglob("sweep.json")
    return json.loads(file.read_text())["jobs"]


def log_of(folder: Path, slurm_job: str) -> str:
    """Everything that a job has printed, all attempts."""
    return "\n".join(file.read_text() for file in sorted(folder.rglob(f"{slurm_job}_*_log.out")))


def steps(run: Path) -> int:
    """How many steps a run's journal holds."""
    journal = run / "metrics.jsonl"
    lines = journal.read_bytes().splitlines() if journal.is_file() else []
    return sum(b'"train"' in line for line in lines)


def hold_at(steps_of: dict[Path, int]) -> None:
    """Run -> number of steps after which its first process stands still until it is told to stop; waits for all."""

    def hold(run: Path, step: int) -> bool:
        try:
            return steps(run) > step and hold_until_signalled(json.loads((run / "attempt.json").read_text())["pid"])
        except ProcessLookupError:  # between two attempts
            return False

    with ThreadPoolExecutor(len(steps_of)) as each:
        waits = [each.submit(wait_until, partial(hold, *one), 240, f"{one[0]} to train") for one in steps_of.items()]
    for wait in waits:
        wait.result()


def curve(run: Path) -> list[tuple[int, float]]:
    """(step, loss) of every step."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(record["step"], record["loss"]) for record in records if record["kind"] == "train"]


def assert_same_result(run: Path, undisturbed: Path) -> None:
    """The loss curve and the adapter, to the bit."""
    assert curve(run) == curve(undisturbed)
    one, other = (folder / "adapter" / "adapter.safetensors" for folder in (run, undisturbed))
    assert one.read_bytes() == other.read_bytes()
