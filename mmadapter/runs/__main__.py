"""The state of all runs, from their folders and from SLURM's queue where there is one.

python -m mmadapter.runs                      all runs in runs/, and the sweeps' jobs that never started
python -m mmadapter.runs FOLDER ... [--json]  other places: a runs_root, a sweep's folder, a run folder
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mmadapter.errors import InputError
from mmadapter.runs.listing import as_json, as_text, list_runs
from mmadapter.runs.state import jobs_in_queue


def main(arguments: list[str]) -> int:
    """The command's exit status: 0, or 2 for a folder or a sweep's file that cannot be used."""
    parser = argparse.ArgumentParser(
        "python -m mmadapter.runs", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")], metavar="FOLDER")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args(arguments)
    damaged: list[str] = []
    try:
        listed = list_runs(options.folders, jobs_in_queue(), damaged.append)
        print(json.dumps(as_json(listed), indent=1) if options.json else as_text(listed), flush=True)
    except InputError as error:
        damaged.append(str(error))
    except BrokenPipeError:  # `| head` has seen enough
        sys.stderr.close()
        return 0
    for message in damaged:
        print(f"error: {message}", file=sys.stderr)
    return 2 if damaged else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
