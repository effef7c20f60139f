"""What a job does for its sweep when its run has ended: table and page anew, as nobody may wait for the last job."""

from __future__ import annotations

import sys
from pathlib import Path

from mmadapter.runs.queue import jobs_in_queue


def write_page(sweep: Path) -> None:
    """Writes sweep.csv and sweep.html as things stand now. A failure is said in one line, and is none of the run's."""
    from mmadapter.runs.sweep import write_sweep

    try:
        write_sweep(sweep, jobs_in_queue())
    except Exception as error:  # a full disk, a damaged sweep.json, ...: the run itself is whole
        said = " ".join(str(error).split())
        print(
            f"{sweep / 'sweep.html'} was not written: {type(error).__name__}: {said} To write it: "
            f"python -m mmadapter.runs sweep {sweep}",
            file=sys.stderr,
        )
