"""The state of all runs; the results of a sweep.

python -m mmadapter.runs                      all runs in runs/, and the sweeps' jobs that never started
python -m mmadapter.runs FOLDER ... [--json]  other places: a runs_root, a sweep's folder, a run folder
python -m mmadapter.runs sweep FOLDER         write FOLDER/sweep.csv and sweep.html, from what is finished
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mmadapter.errors import InputError
from mmadapter.runs.listing import as_json, as_text, list_runs
from mmadapter.runs.queue import jobs_in_queue


def main(arguments: list[str]) -> int:
    """The command's exit status: 0, or 2 for a folder or a sweep's file that cannot be used."""
    try:
        if arguments[:1] == ["sweep"]:
            show_sweeps(parsed_sweep(arguments[1:]))
        else:
            return show_runs(parsed_runs(arguments))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
    return 0


def parsed_runs(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m mmadapter.runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="for programs")
    return parser.parse_args(arguments)


def parsed_sweep(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m mmadapter.runs sweep", description="Write sweep.csv and sweep.html.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a sweep's folder (with sweep.json)")
    return parser.parse_args(arguments)


def show_runs(options: argparse.Namespace) -> int:
    """The table or JSON, and below it what could not be read; then the status is 2."""
    damaged: list[str] = []
    listed = list_runs(options.folders, jobs_in_queue(), damaged.append)
    print(json.dumps(as_json(listed), indent=1) if options.json else as_text(listed), flush=True)
    for message in damaged:
        print(f"error: {message}", file=sys.stderr)
    return 2 if damaged else 0


def show_sweeps(options: argparse.Namespace) -> None:
    from mmadapter.runs.sweep import sweep_text, write_sweep

    for folder in options.folders:
        print(sweep_text(write_sweep(folder, jobs_in_queue())))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
