"""The state of all runs, from their folders and from SLURM's queue where there is one.

mmadapter runs                      all runs in runs/, and the sweeps' jobs that never started
mmadapter runs FOLDER ... [--json]  other places: a runs_root, a sweep's folder, a run folder
mmadapter runs table efficiency [FOLDER ...] [--json]
                                    of finished runs: parameters, bytes, memory, time
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from mmadapter.errors import InputError, printable
from mmadapter.runs import efficiency
from mmadapter.runs.efficiency import efficiency_of
from mmadapter.runs.state import Queue, RunFolder, RunState, counts, jobs_in_queue, state_of
from mmadapter.runs.sweep import SWEEP_FILE, read_results, sweeps_in
from mmadapter.terminal import duration, format_table

RUN_FILES = ("config.yaml", "attempt.json", "finished.json")
COLUMNS = ("run", "state", "step", "of", "%", "best val.", "score", "time", "last change", "where")


def main(arguments: list[str]) -> int:
    """The command's exit status: 0, or 2 for a folder or a sweep's file that cannot be used."""
    parser = argparse.ArgumentParser(
        "mmadapter runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="for programs; times are UNIX times")
    table = arguments[1] if arguments[:1] == ["table"] and len(arguments) > 1 else None
    if arguments[:1] == ["table"] and table != "efficiency":
        print(f"error: mmadapter runs table: got {table}; there is: efficiency. For a folder: ./table", file=sys.stderr)
        return 2
    options = parser.parse_args(arguments[2:] if table else arguments)
    damaged: list[str] = []
    try:
        runs = list_runs(options.folders, jobs_in_queue(), damaged.append)
        if table:
            found = [efficiency_of(RunFolder(run.folder)) for run in runs if run.state == "finished"]
            rows, text = [asdict(one) for one in found], efficiency.as_text(found)
        else:
            rows = [{**asdict(run), "folder": str(run.folder), "percent": run.percent} for run in runs]
            text = printable(as_text(runs))
        print(json.dumps(rows, indent=1) if options.json else text, flush=True)
    except InputError as error:
        damaged.append(str(error))
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    for message in damaged:
        print(f"error: {printable(message)}", file=sys.stderr)
    return 2 if damaged else 0


def list_runs(folders: Sequence[Path], queue: Queue, say: Callable[[str], None] = print) -> list[RunState]:
    """Every run in `folders` (roots, sweeps' folders or run folders): first the sweeps' jobs, then the other runs.

    `say` gets the message about a sweep whose file is damaged; its runs count as runs of no sweep. Raises InputError
    for a folder that does not exist.
    """
    found: list[RunState] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: there is no such folder. Name the one that holds the runs (runs_root).")
        for sweep in sweeps_in(folder):
            try:
                found += [job.state for job in read_results(sweep, queue).jobs]
            except InputError as error:
                say(str(error))
    seen = {run.folder.resolve() for run in found}
    for folder in folders:  # itself a run, else the runs directly in it
        paths = [folder] if is_run(folder) else [] if (folder / SWEEP_FILE).is_file() else sorted(folder.iterdir())
        own = [path for path in paths if is_run(path) and path.resolve() not in seen]
        seen |= {path.resolve() for path in own}
        found += [state_of(RunFolder(path), queue=queue) for path in own]
    return found


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in RUN_FILES)


def as_text(runs: Sequence[RunState]) -> str:
    """The table ("-" where nothing is known), the reasons below it, and a line of counts."""
    if not runs:
        return "no runs"
    rows = []
    for run in runs:
        score = next(iter(run.scores.items()), None)
        cells = [
            run.name,
            run.state,
            run.step,
            run.steps,
            None if run.percent is None else f"{run.percent:.0f}",
            None if run.best_validation is None else f"{run.best_validation:.4f}",
            None if score is None else f"{score[0]} {score[1]:.4g}",
            None if run.seconds is None else duration(run.seconds),
            None if run.changed is None else f"{duration(max(0, time.time() - run.changed))} ago",
            " ".join(str(part) for part in (run.host, f"job {run.slurm_job}" if run.slurm_job else None) if part)
            or None,
        ]
        rows.append(["-" if cell is None else str(cell) for cell in cells])
    reasons = [f"{run.name}: {run.state}: {run.reason}" for run in runs if run.reason]
    reasons += [f"{run.name}: not shown: {line}" for run in runs for line in run.left_out]
    return "\n".join([format_table(COLUMNS, rows), *([""] + reasons if reasons else []), "", counts(runs)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
