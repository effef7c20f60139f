"""attempt.json: who works on a run, since when, and how it ended; what `python -m mmadapter.runs` shows of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmadapter.config.run_folder import ATTEMPT_FILE
from mmadapter.config.signals import ended_by
from mmadapter.errors import InputError
from mmadapter.files import read_json, write_json
from mmadapter.processes import here
from mmadapter.runs.state import process_start
from mmadapter.training.requeue import own_job

SIGNS_OF_LIFE = (ATTEMPT_FILE, "metrics.jsonl")


@contextlib.contextmanager
def attempt(folder: Path) -> Iterator[None]:
    """While inside, the run is "running"; after it "finished", "stopped" or "failed", with the reason.

    A killed process leaves "running": then its host and process number tell.
    """
    note(folder, **here_and_now(), **earlier(folder))
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk; the error itself says it
            note(folder, ended=time.time(), **ending(error))
        raise
    note(folder, state="finished", ended=time.time())


def note(folder: Path, **facts: Any) -> None:
    """Adds to the facts of the current attempt; a new attempt (`state="running"`) begins anew."""
    if not here().is_first:
        return
    begins = facts.get("state") == "running"
    known = {} if begins else read_json(folder / ATTEMPT_FILE) or {}
    write_json(folder / ATTEMPT_FILE, {**known, **facts})


def earlier(folder: Path) -> dict[str, Any]:
    """The number of the attempt that begins now, and the wall time of those before it.

    A killed one has lasted until its last sign of life: the last line of the journal.
    """
    last = read_json(folder / ATTEMPT_FILE) or {}
    if "started" not in last:
        return {"attempts": 1, "earlier_seconds": 0.0}
    signs = [path.stat().st_mtime for name in SIGNS_OF_LIFE if (path := folder / name).is_file()]
    seconds = max(last.get("ended", max(signs)) - last["started"], 0.0)
    return {"attempts": last.get("attempts", 1) + 1, "earlier_seconds": last.get("earlier_seconds", 0.0) + seconds}


def wall_time(folder: Path) -> dict[str, Any]:
    """`wall_seconds`, the sum over all attempts at the run with the current one, and how many `attempts` there were.

    Only within `attempt`, on the first process.
    """
    facts = read_json(folder / ATTEMPT_FILE)
    return {
        "wall_seconds": facts["earlier_seconds"] + max(time.time() - facts["started"], 0.0),
        "attempts": facts["attempts"],
    }


def here_and_now() -> dict[str, Any]:
    """What tells this attempt from another: machine, process, SLURM job, time."""
    return {
        "state": "running",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
        "slurm_job": own_job(),
        "processes": here().count,
        "started": time.time(),
    }


def ending(error: BaseException) -> dict[str, Any]:
    """State and reason of an attempt that `error` ended."""
    if isinstance(error, KeyboardInterrupt):  # outside of the training loop
        return {"state": "stopped", "signal": ended_by(error).name}
    if isinstance(error, SystemExit):  # the loop has saved; a cluster's handler exits with a code of its own
        code = error.code if isinstance(error.code, int) else 0
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else None
        return {"state": "stopped", "signal": name}
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return {"state": "failed", "message": text}
