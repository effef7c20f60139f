"""How a command of this room runs: what it prints, how it fails, its exit status."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError

from mmadapter.errors import InputError, exit_status
from mmadapter.hosts.load import hide_library_bars


def command(convert: Callable[[], str], target: Path) -> int:
    """Run `convert`, which writes `target` and returns what it says; the exit status."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed, where installed, warns when it is imported
    if not sys.stderr.isatty():
        hide_library_bars()

    def work() -> None:
        try:
            print(convert())
        except (OSError, SafetensorError) as error:
            what = f"{target} cannot be written ({error}); nothing is left of it. Make room."
            raise InputError(what) from error

    return exit_status(work)
