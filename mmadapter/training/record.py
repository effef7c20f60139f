"""What a run folder records besides numbers: versions, the trainable table, results."""

from __future__ import annotations

import contextlib
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from mmadapter.files import LEFTOVERS, locked, read_json
from mmadapter.processes import here

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


def versions() -> dict[str, Any]:
    """Packages, Python, machine, processes, git revision of the checkout, command."""
    from mmadapter import __version__

    return {
        "mmadapter": __version__,
        "python": platform.python_version(),
        "packages": {name: found for name in PACKAGES if (found := _version(name)) is not None},
        "git": git_revision(),
        "device": device_name(),
        "threads": torch.get_num_threads(),
        "processes": here().count,
        "launcher": here().launcher,
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


def clear_leftovers(folder: Path) -> None:
    """Removes what a killed attempt left under temporary names."""
    from mmadapter.methods.folder import recover_adapter

    recover_adapter(folder / "adapter")
    for path in folder.rglob(LEFTOVERS):
        path.unlink()


def only_process(folder: Path) -> contextlib.AbstractContextManager[None]:
    """While inside, no other process of this machine works in the run folder. Raises InputError where one does."""
    busy = f"Another process is working in {folder}. Wait for it, or give this run a folder of its own: run=NAME"
    return locked(folder / LOCK_FILE, busy)


def results_of(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Task name -> metrics, from the evaluations that a run folder holds."""
    found = {path.parent.name: read_json(path) for path in sorted(folder.glob("eval/*/metrics.json"))}
    return {name: metrics for name, metrics in found.items() if metrics is not None}
