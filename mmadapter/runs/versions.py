"""versions.json: what a run was made with."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from mmadapter import __version__
from mmadapter.distributed.ranks import Ranks
from mmadapter.files import package_versions
from mmadapter.terminal import own_command

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


def versions(ranks: Ranks) -> dict[str, Any]:
    """Packages, Python, machine, processes, git revision of the checkout, command."""
    processor = f"CPU ({platform.processor() or platform.machine()})"
    return {
        "mmadapter": __version__,
        "python": platform.python_version(),
        "packages": package_versions(PACKAGES),
        "git": git_revision(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor,
        "threads": torch.get_num_threads(),
        "processes": ranks.world_size,
        "launcher": ranks.launcher,
        "platform": platform.platform(),
        "command": own_command(),
    }


def git_revision() -> str | None:
    """Commit of the checkout that this package is run from, with "+changes" where files differ; None without git."""
    folder = Path(__file__).resolve().parents[2]
    if not (folder / ".git").exists():
        return None
    options = ["--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    command = ["git", "-C", str(folder), "describe", *options]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()
