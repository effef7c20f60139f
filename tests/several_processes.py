"""Checks that need several processes: each file of them is started once, as a program, and says what has held."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmadapter.launch.start import free_port

CHECKOUT = Path(__file__).parents[1]
HELD = "held"


def outcomes(
    module: str, processes: int, folder: Path, environment: Mapping[str, str] = {}, limit: float = 300
) -> dict[str, str]:
    """Starts `module` (which calls `carry_out`) as several processes; check -> "held", or what went wrong where."""
    meeting = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", module, str(folder)]
    shared = os.environ | dict(environment) | meeting | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    shared["PYTHONPATH"] = os.pathsep.join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
    started = [
        subprocess.Popen(
            command,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=CHECKOUT,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"errors-{rank}").open("w"),
        )
        for rank in range(processes)
    ]
    try:
        for process in started:
            process.wait(timeout=limit)
    finally:
        for process in started:
            process.kill()
    parts = [json.loads(file.read_text()) for file in sorted(folder.glob("outcome-*.json"))]
    found: dict[str, str] = {}
    for part in parts:
        for check, outcome in part.items():
            found[check] = outcome if found.get(check, HELD) == HELD else found[check]
    errors = "\n".join((folder / f"errors-{rank}").read_text()[-3000:] for rank in range(processes))
    return found | {"the end": HELD if all(p.returncode == 0 for p in started) else errors}


def carry_out(checks: dict[str, Callable[[], Any]], folder: Path) -> None:
    """Runs the checks in this process, one after the other; ends at the first that fails (the others end with it)."""
    from mmadapter.processes import here, joined

    found: dict[str, str] = {}
    file = None
    try:
        with joined("cpu", group_of_one=True):
            file = folder / f"outcome-{here().rank}.json"
            for name, check in checks.items():
                try:
                    check()
                except BaseException:
                    found[name] = traceback.format_exc()
                    raise
                found[name] = HELD
                here().wait()
    finally:
        if file is not None:
            file.write_text(json.dumps(found))
