"""Write a sweep's table and page anew, from what its run folders hold at this moment.

mmadapter sweep runs/sweeps/NAME ...     writes sweep.csv and sweep.html there
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mmadapter.errors import exit_status, printable
from mmadapter.runs.state import jobs_in_queue


def main(arguments: list[str]) -> int:
    """The command's exit status: 0, or 2 for a folder that holds no sweep, or a damaged one."""
    parser = argparse.ArgumentParser("mmadapter sweep", description="Write sweep.csv and sweep.html.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="a sweep's folder (with sweep.json)")
    folders = parser.parse_args(arguments).folders

    def work() -> None:
        from mmadapter.sweeps.results import sweep_text, write_sweep

        for folder in folders:
            print(printable(sweep_text(write_sweep(folder, jobs_in_queue()))))

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
