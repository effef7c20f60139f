"""One attempt at a run: attempt.json (who works on it, since when, how it ended), the lock, leftovers. No torch."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmadapter.distributed.launchers import own_job
from mmadapter.distributed.start import signal_of
from mmadapter.errors import InputError, text_of
from mmadapter.files import LEFTOVERS, locked, recover_folder, write_json
from mmadapter.runs.folder import ATTEMPT_FILE, FINISHED_FILE
from mmadapter.runs.journal import METRICS_FILE
from mmadapter.runs.state import RunFolder, process_start

LOCK_FILE = ".running"


@contextlib.contextmanager
def attempt(folder: Path, world_size: int) -> Iterator[None]:
    """While inside, the run is "running", and no other process of this machine works in its folder.

    After it the run is "finished", "stopped" or "failed", with the reason. A killed process leaves "running": then its
    host and process number tell. On the first rank only. Raises InputError where another process works in the folder.
    """
    busy = f"Another process is working in {folder}. Wait for it, or give this run a folder of its own: run=NAME"
    with locked(folder / LOCK_FILE, busy):
        # A killed attempt has lasted until its last sign of life: the last line of the journal.
        last, attempts, earlier_seconds = _facts(folder), 1, 0.0
        if "started" in last:
            files = (folder / ATTEMPT_FILE, folder / METRICS_FILE)
            seen = max(file.stat().st_mtime for file in files if file.is_file())
            attempts = int(last.get("attempts", 1)) + 1
            earlier_seconds = last.get("earlier_seconds", 0.0) + max(last.get("ended", seen) - last["started"], 0.0)
        facts = {
            "state": "running",
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "pid_start": process_start(os.getpid()),
            "slurm_job": own_job(),
            "processes": world_size,
            "started": time.time(),
            "attempts": attempts,
            "earlier_seconds": earlier_seconds,
        }
        write_json(folder / ATTEMPT_FILE, facts)
        try:
            yield
        except BaseException as error:
            if (folder / ATTEMPT_FILE).exists():  # else the folder was taken away, and is not made again
                with contextlib.suppress(OSError):  # a full disk; the error itself says it
                    note(folder, ended=time.time(), **ending(error))
            raise
        note(folder, state="finished", ended=time.time())


def note(folder: Path, **facts: Any) -> None:
    """Add to the facts of the current attempt. On the first rank only."""
    write_json(folder / ATTEMPT_FILE, {**_facts(folder), **facts})


def _facts(folder: Path) -> dict[str, Any]:
    """What attempt.json says; of a damaged one, what of it is of the right kind. It decides no result."""
    return RunFolder(folder).attempt


def still_there(folder: Path, file: str = ATTEMPT_FILE) -> None:
    """Raises InputError where the run's folder was taken away while it runs, and `file`, its own, with it."""
    if not (folder / file).is_file():
        raise InputError(
            f"{folder} was removed or renamed while the run was working there. It ends here and writes nothing more. "
            "Put the folder back and give the same command again to go on; without it that trains from the start."
        )


def settle_finished(folder: Path) -> None:
    """Tidy up behind an attempt that was killed between its last result and saying so: the run is finished."""
    with contextlib.suppress(InputError), locked(folder / LOCK_FILE, "another process is about to say it"):
        clear_leftovers(folder)
        if _facts(folder).get("state") == "running":
            note(folder, state="finished", ended=(folder / FINISHED_FILE).stat().st_mtime)


def wall_time(folder: Path) -> dict[str, Any]:
    """`wall_seconds`, the sum over all attempts at the run with the current one, and how many `attempts` there were.

    Only within `attempt`, on the first process.
    """
    still_there(folder)
    facts = _facts(folder)
    return {
        "wall_seconds": facts.get("earlier_seconds", 0.0) + max(time.time() - facts.get("started", time.time()), 0.0),
        "attempts": int(facts.get("attempts", 1)),
    }


def ending(error: BaseException) -> dict[str, Any]:
    """State and reason of an attempt that `error` ended."""
    if isinstance(error, KeyboardInterrupt):  # outside of the training loop
        return {"state": "stopped", "signal": signal_of(error).name}
    if isinstance(error, SystemExit):  # the loop has saved; a cluster's handler exits with a code of its own
        code = error.code if isinstance(error.code, int) else 0
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else None
        return {"state": "stopped", "signal": name}
    return {"state": "failed", "message": text_of(error)}


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed attempt left under temporary names."""
    recover_folder(folder / "adapter")
    for path in folder.rglob(LEFTOVERS):
        path.unlink()
