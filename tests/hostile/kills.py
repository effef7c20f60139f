"""Runs that are killed at random moments: `python -m tests.hostile.kills 100`.

Each trial is a run of its own, of one or two processes, that gets a SIGKILL at a moment drawn from the seed: at some
time, or within some write of a file (a checkpoint, the adapter, scores, the report, the run's own notes): before it,
with half of the content on the disk, or behind it. Then the same command goes on to the end. Counted are trials whose
adapter and loss curve are those of an undisturbed run, to the bit, that are marked finished and leave nothing half
written. Prints the counts by moment; exit status 1 where a trial differs.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmadapter import files
from mmadapter.files import read_json
from mmadapter.runs.journal import read_metrics

SETTINGS = (
    *("optimizer.epochs=2", "training.save_every_steps=2", "training.validate_every_steps=4", "evaluate=[scienceqa]"),
    *("~comparison.host", "~comparison.text_only", "launch.meet_seconds=30"),
)
ENGINES = {1: "single", 2: "zero1"}
TIMES = ("time", "seconds", "tokens_per_s", "memory")


@dataclass(frozen=True)
class Moment:
    """When a process is killed."""

    seconds: float | None  # after its start; None: at a write
    write: int = 0  # which one
    part: str = ""  # before, within, behind


class WriteCounter:
    """Stands in for `files.write_durably`: counts the writes of a process, and kills it at one of them."""

    def __init__(self, moment: Moment | None, told: Path) -> None:
        self.moment, self.told, self.count, self.original = moment, told, 0, files.write_durably

    def __call__(self, path: Path, content: bytes) -> None:
        is_it = self.moment is not None and self.moment.seconds is None and self.count == self.moment.write
        self.count += 1
        with open(self.told, "a", encoding="utf-8") as notes:
            notes.write(f"{path}\n")
        if is_it and self.moment is not None:
            if self.moment.part == "within":
                self.original(path, content[: len(content) // 2])
            elif self.moment.part == "behind":
                self.original(path, content)
            os.kill(os.getpid(), signal.SIGKILL)
        self.original(path, content)


def started(inputs: Path, runs: Path, name: str, count: int, moment: Moment | None = None) -> tuple[Any, Path]:
    """The processes of one start, forked from this one; the file that lists what rank 0 writes."""
    from tests.distributed.several import Several
    from tests.training.launched import run_like_the_entry
    from tests.training.tiny_run import tiny_conf

    conf = tiny_conf(inputs, runs, *SETTINGS, f"run={name}", f"engine.name={ENGINES[count]}")
    told = runs / f"{name}-writes"

    def disturb(rank: int) -> None:
        if rank == 0:
            files.write_durably = WriteCounter(moment, told)  # type: ignore[assignment]

    return Several(count, run_like_the_entry, conf, disturb, folder=runs / f"{name}-said"), told


def results(folder: Path) -> tuple[bytes, bytes, list[dict[str, Any]]]:
    """What must not depend on a kill: adapter, answers, loss curve."""
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] in ("train", "validation")]
    curve = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    answers = (folder / "eval" / "scienceqa" / "predictions.jsonl").read_bytes()
    return (folder / "adapter" / "adapter.safetensors").read_bytes(), answers, curve


def kind_of(path: str) -> str:
    """What was being written."""
    kinds = {"checkpoints": "a checkpoint", "adapter": "the adapter", "eval": "scores", "report": "the report"}
    return next((kind for part, kind in kinds.items() if part in path.rpartition("/runs/")[2]), "the run's notes")


def trial(
    number: int, rng: random.Random, inputs: Path, runs: Path, count: int, whole: dict[str, Any]
) -> tuple[str, str]:
    """One run that is killed and goes on: the moment, and what is wrong with what came of it ("": nothing)."""
    moment = Moment(rng.random() * whole["seconds"])
    if rng.random() < 0.6:
        moment = Moment(None, rng.randrange(whole["writes"]), rng.choice(("before", "within", "behind")))
    killed = rng.randrange(count)
    name = f"run-{number}"
    group, told = started(inputs, runs, name, count, moment)
    if moment.seconds is not None:
        time.sleep(moment.seconds)
        if (pid := group.processes[killed].pid) is not None and group.processes[killed].is_alive():
            os.kill(pid, signal.SIGKILL)
    statuses = group.end()
    written = told.read_text().splitlines() if told.is_file() else []
    where = "at some time" if moment.seconds is not None else f"in a write of {kind_of(written[-1] if written else '')}"
    what = f"{count} process{'es' if count > 1 else ''}, {where}"
    if None in statuses:
        return what, f"a process hangs after the kill: {statuses}, {moment}"
    for _ in range(2):  # a finished run is shown, which also tidies up behind a kill at the very last write
        group, _ = started(inputs, runs, name, count)
        if any(group.end()):
            return what, f"it does not go on ({moment}): {group.said(0)[-1500:]}"
    folder = runs / name
    found, wanted = results(folder), whole["results"]
    wrong = [
        part for part, one, other in zip(("adapter", "answers", "curve"), found, wanted, strict=True) if one != other
    ]
    wrong += [f"left: {path.name}" for path in folder.rglob(".*")]
    if (state := (read_json(folder / "attempt.json") or {}).get("state")) != "finished":
        wrong.append(f"state {state}")
    return what, f"{', '.join(wrong)} ({moment})" if wrong else ""


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m tests.hostile.kills", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kills", nargs="?", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--two", type=float, default=0.25, help="share of runs of two processes (default 0.25)")
    options = parser.parse_args(words)
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    import torch

    torch.set_num_threads(1)
    from tests.training.tiny_run import save_inputs

    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ["TMPDIR"] = str(folder)
    began, counts, bad = time.monotonic(), Counter[str](), []
    try:
        inputs, runs = save_inputs(folder / "inputs"), folder / "runs"
        runs.mkdir()
        two = round(options.kills * options.two)
        whole: dict[int, dict[str, Any]] = {}
        for count in [1] * (options.kills > two) + [2] * (two > 0):
            if count == 2:
                import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401 (takes 3 s; wanted at every start)
            for attempt in ("warm", "whole"):  # the first one imports what a run needs into the cache of the disk
                start = time.monotonic()
                group, told = started(inputs, runs, f"{attempt}-{count}", count)
                statuses = group.end()
                assert not any(statuses), group.said(0)
            writes = len(told.read_text().splitlines())
            seconds = time.monotonic() - start
            whole[count] = {"seconds": seconds, "writes": writes, "results": results(runs / f"whole-{count}")}
            print(f"undisturbed, {count} process(es): {seconds:.1f} s, {writes} writes", flush=True)
        for number in range(options.kills):
            rng, count = random.Random(f"{options.seed}/{number}"), 1 if number % options.kills >= two else 2
            what, wrong = trial(number, rng, inputs, runs, count, whole[count])
            counts[what] += 1
            if wrong:
                bad.append(f"kill {number}, {what}: {wrong}")
                print(bad[-1], flush=True)
            shutil.rmtree(runs / f"run-{number}", ignore_errors=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n".join(f"{n:4d}  {what}" for what, n in sorted(counts.items())))
    same, took = options.kills - len(bad), time.monotonic() - began
    print(f"{options.kills} kills, {same} bit-identical adapters; seed {options.seed}; {took:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
