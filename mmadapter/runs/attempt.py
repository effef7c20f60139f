"""One attempt at a run: attempt.json (who works on it, since when, how it ended), the lock, versions, leftovers."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mmadapter.distributed.launchers import own_job
from mmadapter.distributed.ranks import Ranks
from mmadapter.distributed.start import signal_of
from mmadapter.errors import InputError
from mmadapter.files import LEFTOVERS, locked, read_json, write_json
from mmadapter.runs.folder import ATTEMPT_FILE
from mmadapter.runs.state import process_start

SIGNS_OF_LIFE = (ATTEMPT_FILE, "metrics.jsonl")
LOCK_FILE = ".running"
PACKAGES = (
    "torch",
    "transformers",
    "open_clip_torch",
    "timm",
    "tokenizers",
    "safetensors",
    "hydra-core",
    "numpy",
    "deepspeed",
)


@contextlib.contextmanager
def attempt(folder: Path, world_size: int) -> Iterator[None]:
    """While inside, the run is "running"; after it "finished", "stopped" or "failed", with the reason.

    A killed process leaves "running": then its host and process number tell.
    """
    note(folder, **this_attempt(world_size), **earlier(folder))
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # a full disk; the error itself says it
            note(folder, ended=time.time(), **ending(error))
        raise
    note(folder, state="finished", ended=time.time())


def note(folder: Path, **facts: Any) -> None:
    """Add to the facts of the current attempt; `state="running"` begins a new one. On the first rank only."""
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


def this_attempt(world_size: int) -> dict[str, Any]:
    """What tells this attempt from another: machine, process, SLURM job, time."""
    return {
        "state": "running",
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "pid_start": process_start(os.getpid()),
        "slurm_job": own_job(),
        "processes": world_size,
        "started": time.time(),
    }


def ending(error: BaseException) -> dict[str, Any]:
    """State and reason of an attempt that `error` ended."""
    if isinstance(error, KeyboardInterrupt):  # outside of the training loop
        return {"state": "stopped", "signal": signal_of(error).name}
    if isinstance(error, SystemExit):  # the loop has saved; a cluster's handler exits with a code of its own
        code = error.code if isinstance(error.code, int) else 0
        name = signal.Signals(code - 128).name if code - 128 in set(signal.Signals) else None
        return {"state": "stopped", "signal": name}
    text = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"
    return {"state": "failed", "message": text}


def only_process(folder: Path) -> contextlib.AbstractContextManager[None]:
    """While inside, no other process of this machine works in the run folder. Raises InputError where one does."""
    busy = f"Another process is working in {folder}. Wait for it, or give this run a folder of its own: run=NAME"
    return locked(folder / LOCK_FILE, busy)


def clear_leftovers(folder: Path) -> None:
    """Remove what a killed attempt left under temporary names."""
    from mmadapter.methods.folder import recover_adapter

    recover_adapter(folder / "adapter")
    for path in folder.rglob(LEFTOVERS):
        path.unlink()


def versions(ranks: Ranks) -> dict[str, Any]:
    """Packages, Python, machine, processes, git revision of the checkout, command."""
    from mmadapter import __version__

    return {
        "mmadapter": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "git": git_revision(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "processes": ranks.world_size,
        "launcher": ranks.launcher,
        "platform": platform.platform(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def device_name() -> str:
    """The GPU's name, or the processor's architecture."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"CPU ({platform.processor() or platform.machine()})"


def git_revision() -> str | None:
    """Commit of the checkout that this package is run from, with "+changes" where files differ; None without git."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
